"""WinCLIP and WinCLIP+ (Jeong et al.: "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", CVPR 2023,
arXiv 2303.14814). No training.

Windows of a few patches go through the image encoder on their own and are compared with the texts of two states; each
patch takes the harmonic mean over the windows that cover it. WinCLIP+ adds the distances of windows and patches to
those of normal reference images.
"""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.input_spec import InputSpec, SquareInput
from model import anomaly_map, memory_bank
from model.interface import Memory, Prediction, ScoreRange, SimilarityCache
from model.options import MEDICAL_PROMPTS, Option, Preset, positive
from model.text_features import TextFeatures, encode_states
from model.tokens import join_tokens
from prompt_ensemble import WINCLIP, Prompts

if TYPE_CHECKING:
    from model.backbones.clip import Backbone

_TEMPERATURE = 0.07
_SCALES = (2, 3)
# Tokens in one call of the encoder; bounds its memory (about 1.5 GiB with ViT-L) whatever image size and scales.
_TOKENS_AT_ONCE = 1 << 15


class WindowTokens(NamedTuple):
    """What WinCLIP makes of a batch of images."""

    pooled: Tensor  # (B, D), not normalised
    windows: dict[int, Tensor]  # scale -> (B, n, D), not normalised
    patches: Tensor  # (B, N, W), raw output of the last block without class token


class WinClip(nn.Module):
    """A detector as `model.interface.Detector` describes it.

    Args:
        backbone: a frozen ViT CLIP.
        scales: sides of the square windows, in patches; the published ones are 2 and 3.
        prompts: states and templates.

    Raises:
        ValueError: a ResNet, or a window that does not fit into the grid.
    """

    PRESET: ClassVar[Preset] = Preset(
        "ViT-B-16-plus-240",
        "laion400m_e31",
        240,
        batch_size=8,
        k_shot=(4,),
        seed=(42,),
        prompts=MEDICAL_PROMPTS,
    )
    OPTIONS: ClassVar[tuple[Option, ...]] = (
        Option(
            "scales",
            positive,
            "sides of the square windows, in patches (default: 2 3)",
            default=_SCALES,
            nargs="+",
            scripts=("test",),
        ),
    )
    needs_text: ClassVar[bool] = True

    def __init__(self, backbone: "Backbone", *, scales: Sequence[int] = _SCALES, prompts: Prompts = WINCLIP):
        super().__init__()
        backbone.check_blocks("winclip")  # whose patches can be left out
        grid = backbone.image_size // backbone.patch
        for scale in scales:
            if not 1 <= scale <= grid or len(set(scales)) != len(scales):
                raise ValueError(
                    f"--scales {' '.join(map(str, scales))}: must be different window sides from 1 to {grid}, "
                    f"the patches a side of {backbone.name} at {backbone.image_size} pixels"
                )
        self.backbone = backbone
        self.grid = grid
        self.scales = tuple(sorted(scales))
        self.prompts = prompts
        self.texts = TextFeatures(self._encode_name)
        for scale in scales:
            self.register_buffer(f"members{scale}", window_patches(self.grid, scale), persistent=False)

    @property
    def input_spec(self) -> InputSpec:
        return SquareInput(self.backbone.image_size)

    @property
    def options(self) -> dict[str, list[int]]:
        return {"scales": list(self.scales)}

    # --- text -------------------------------------------------------------------------------------------------------

    def encode_names(self, names: Sequence[str]) -> None:
        self.texts.encode(names)

    def _encode_name(self, name: str) -> Tensor:
        """Per state: mean of the embeddings of all its sentences, each at its own length; then unit length. (D, 2)"""
        states = [texts.mean(0) for texts in encode_states(self.backbone.text, name, self.prompts)]  # each (D,)
        return F.normalize(torch.stack(states, dim=-1), dim=0)

    # --- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor) -> WindowTokens:
        depth = self.backbone.depth
        windows = {scale: f"windows {scale}" for scale in self.scales}
        shapes = {name: (self.bank_rows[f"window{scale}"], self.backbone.embed_dim) for scale, name in windows.items()}
        shapes[f"patches {depth}"] = (self.grid**2, self.backbone.width(depth))

        def encode(some: Tensor) -> dict[str, Tensor]:
            tokens = self.backbone.embed(some)  # (B, 1 + N, W)
            pooled, outputs = self.backbone.encode(tokens, (depth,))
            whole = {"pooled": pooled, f"patches {depth}": outputs[depth][:, 1:]}  # as any method of this backbone
            return {**whole, **{name: self._encode_windows(tokens, scale) for scale, name in windows.items()}}

        found = self.backbone.features(images, {"pooled": (self.backbone.embed_dim,), **shapes}, encode)
        return WindowTokens(
            found["pooled"], {scale: found[name] for scale, name in windows.items()}, found[f"patches {depth}"]
        )

    def _encode_windows(self, tokens: Tensor, scale: int) -> Tensor:
        """Embeddings of all windows of one scale, (B, n, D): the encoder sees the class token and the window's patches,
        with the positions that they have in the full image."""
        members = getattr(self, f"members{scale}")  # (n, scale * scale)
        images, count = tokens.shape[0], len(members)
        class_token, patches = tokens[:, :1], tokens[:, 1:]
        embeddings = []
        everything = torch.arange(images * count, device=tokens.device)
        for part in memory_bank.parts(everything, _TOKENS_AT_ONCE // (1 + scale**2)):
            image, window = part // count, part % count
            chosen = patches[image[:, None], members[window]]  # (m, scale * scale, W)
            embeddings.append(self.backbone.pool(torch.cat([class_token[image], chosen], dim=1)))
        return torch.cat(embeddings).unflatten(0, (images, count))

    def zero_shot(self, tokens: WindowTokens, names: Sequence[str]) -> Prediction:
        """Map: harmonic mean of the maps of all scales and the image score (section 4.2 of the paper)."""
        text = self.texts(names)
        image = self._abnormal(tokens.pooled.unsqueeze(1), text)[:, 0]  # (B,)
        inverse = 1 / image.double()[:, None]  # (B, 1)
        for scale in self.scales:
            inverse = inverse + 1 / self._per_patch(self._abnormal(tokens.windows[scale], text), scale)  # (B, N)
        return Prediction(self._upsample(_finite((len(self.scales) + 1) / inverse)), {"text": image})

    def _abnormal(self, features: Tensor, text: Tensor) -> Tensor:
        """Probability of the abnormal state, (B, n), of features (B, n, D)."""
        return torch.sigmoid(anomaly_map.state_logit(features.float(), text, 1 / _TEMPERATURE))

    def _per_patch(self, scores: Tensor, scale: int) -> Tensor:
        """Harmonic mean at each patch, (B, N) float64, over the scores (B, n) of the windows that cover it."""
        side = self.grid + 1 - scale
        inverse = torch.unflatten(1 / scores.double(), 1, (side, side))  # infinite where a score is 0: so the mean is 0
        count = sum_over_windows(torch.ones_like(inverse[:1]), scale)
        return (count / sum_over_windows(inverse, scale)).flatten(1)

    def _upsample(self, values: Tensor) -> Tensor:
        return anomaly_map.upsample(
            values.float(), (self.grid, self.grid), self.backbone.image_size, align_corners=False
        )

    # --- references -------------------------------------------------------------------------------------------------

    def build_memory(self, references: Sequence[WindowTokens]) -> Memory:
        tokens = join_tokens(references)
        windows = {f"window{scale}": memory_bank.build_bank(tokens.windows[scale]) for scale in self.scales}
        return Memory({**windows, "patch": memory_bank.build_bank(tokens.patches)})

    @property
    def bank_widths(self) -> dict[str, int]:
        windows = {f"window{scale}": self.backbone.embed_dim for scale in self.scales}
        return {**windows, "patch": self.backbone.width(self.backbone.depth)}

    @property
    def bank_rows(self) -> dict[str, int]:
        windows = {f"window{scale}": len(getattr(self, f"members{scale}")) for scale in self.scales}
        return {**windows, "patch": self.grid**2}

    def few_shot(
        self,
        zero_shot: Prediction,
        tokens: WindowTokens,
        names: Sequence[str],
        memories: Mapping[str, Memory],
        found: SimilarityCache | None = None,
    ) -> Prediction:
        """WinCLIP+: the mean of the association maps of windows and patches is added to the map (section 4.3)."""
        values = zero_shot.maps.new_zeros(tokens.patches.shape[:2], dtype=torch.float64)  # (B, N)
        for name, rows in memory_bank.rows_by_name(names).items():
            seen = {} if found is None else {key: found.setdefault((name, key), {}) for key in memories[name].banks}
            values[rows] = self._association(tokens, rows, memories[name], seen)
        score_components = {**zero_shot.score_components, "map_max": values.amax(1).float()}
        return Prediction(zero_shot.maps + self._upsample(values), score_components)

    def _association(
        self,
        tokens: WindowTokens,
        rows: list[int] | slice,
        references: Memory,
        seen: Mapping[str, dict[str, Tensor]] = MappingProxyType({}),
    ) -> Tensor:
        """Mean over window scales and patches of half the distance to the nearest reference, (len(rows), N).

        seen: key of a bank -> its part of `SimilarityCache`.
        """

        def distance(of: Tensor, key: str) -> Tensor:
            return memory_bank.nearest_distance(of[rows], references.banks[key], references.images, seen.get(key))

        distances = [distance(tokens.patches, "patch").double() / 2]
        for scale in self.scales:
            distances.append(self._per_patch(distance(tokens.windows[scale], f"window{scale}") / 2, scale))
        return _finite(torch.stack(distances).mean(0))

    def image_scores(self, score_components: Mapping[str, Tensor], limits: ScoreRange | None = None) -> Tensor:
        """Zero-shot: the text term. Few-shot: its mean with the association map's maximum. Needs no limits."""
        return (
            (score_components["text"] + score_components["map_max"]) / 2
            if "map_max" in score_components
            else score_components["text"]
        )


def window_patches(grid: int, scale: int) -> Tensor:
    """Indices of the patches of every scale x scale window, stride 1, row by row: (n, scale * scale)."""
    patches = torch.arange(grid * grid).view(grid, grid)
    return patches.unfold(0, scale, 1).unfold(1, scale, 1).reshape(-1, scale * scale)


def sum_over_windows(values: Tensor, scale: int) -> Tensor:
    """Sum at each patch, (B, G, G), of the values (B, G + 1 - scale, G + 1 - scale) of all scale x scale windows that
    cover it. Windows are squares: along the rows first, along the columns then."""
    for _ in range(2):
        shifted = [F.pad(values, (before, scale - 1 - before)) for before in range(scale)]
        values = functools.reduce(torch.add, shifted).transpose(1, 2)
    return values


def _finite(values: Tensor) -> Tensor:
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
