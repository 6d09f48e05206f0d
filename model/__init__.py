"""Methods by name, and how to build a detector: `from model import build`.

Importing it needs no CLIP library: command lines are read from what the methods say of themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from data.input_spec import SquareInput
from model.anomaly_clip import AnomalyClip
from model.anomaly_dino import AnomalyDino
from model.april_gan import AprilGan
from model.clip_ad import Sdp, SdpPlus
from model.interface import Detector, ImageTower, ScoringDetector
from model.musc import MuSc
from model.subspace_ad import SubspaceAd
from model.vcp_clip import VcpClip
from model.winclip import WinClip
from prompt_ensemble import Prompts

METHODS: Mapping[str, type[Detector]] = {
    "april_gan": AprilGan,
    "winclip": WinClip,
    "sdp": Sdp,
    "sdp_plus": SdpPlus,
    "vcp_clip": VcpClip,
    "anomaly_clip": AnomalyClip,
    "anomaly_dino": AnomalyDino,
    "subspace_ad": SubspaceAd,
    "musc": MuSc,
}


class Capabilities(NamedTuple):
    """What a method can do. What it cannot do it does not define."""

    trains: bool
    zero_shot: bool
    few_shot: bool
    batched: bool


def capabilities(method: str) -> Capabilities:
    """Of a key of METHODS."""
    cls = METHODS[method]
    parts = (hasattr(cls, part) for part in ("zero_shot", "few_shot", "score_set"))
    return Capabilities(cls.PRESET.training is not None, *parts)


def build(
    method: str,
    *,
    model: str,
    pretrained: str | None = None,
    config_path: str | None = None,
    image_size: int | None = None,
    quick_gelu: str = "auto",
    position_rule: str = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    prompts: Prompts | None = None,
    **options: Any,
) -> ScoringDetector:
    """A detector on a frozen backbone: a CLIP of open_clip, or a model of timm where the method needs no text.

    Args:
        method: a key of METHODS.
        model: architecture name of open_clip or timm, NAME.TAG of timm; `config_path` may register it.
        pretrained: tag or file of weights; None leaves random weights.
        image_size: side of the input; None takes the architecture's own.
        quick_gelu: "auto", "on" or "off"; of CLIPs.
        position_rule: "auto" (the method's own) or one of `options.POSITION_RULES`.
        mean, std: of R, G and B in [0, 1], by which images are normalised; None takes those of the weights.
        prompts: states and templates; None takes the method's own.
        options: the method's own, as its OPTIONS name them (`features_list=[6, 12]`, `scales=[2, 3]`, ...); None takes
            its default.

    Raises:
        ValueError, OSError: see `Backbone` and `TimmBackbone`; an option that the method does not have. One line that
            says what to do.
    """
    # Here, since open_clip and timm take seconds to import.
    from model.backbones.choose import build_backbone

    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; known: {', '.join(METHODS)}")
    check_options(method, options)
    _check_prompts(method, prompts)
    cls = METHODS[method]
    backbone = build_backbone(
        model, pretrained, config_path=config_path, image_size=image_size, quick_gelu=quick_gelu,
        position_rule=position_rule, position_rules=cls.PRESET.position_rules, half_weights=cls.PRESET.half_weights,
        mean=mean, std=std, text_for=method if cls.needs_text else None,
    )  # fmt: skip
    return build_on(backbone, method, prompts=prompts, **options)


def build_on(backbone: ImageTower, method: str, *, prompts: Prompts | None = None, **options: Any) -> ScoringDetector:
    """As `build`, on a backbone that exists already."""
    given = check_options(method, options)
    _check_prompts(method, prompts)
    if prompts is not None:
        given["prompts"] = prompts
    constructor = cast(Callable[..., ScoringDetector], METHODS[method])  # which know their own arguments
    detector = constructor(backbone, **given)
    if isinstance(detector.input_spec, SquareInput):
        backbone.check_square(detector.input_spec.side)
    return detector


def _check_prompts(method: str, prompts: Prompts | None) -> None:
    if prompts is not None and not METHODS[method].needs_text:
        raise ValueError(f"--prompts: {method} compares images with images, not with texts; drop it")


def check_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given. Raises ValueError for one that the method does not have."""
    given = {key: value for key, value in options.items() if value is not None}
    known = [option.name for option in METHODS[method].OPTIONS]
    for key in given.keys() - set(known):
        value = given[key] if isinstance(given[key], list | tuple) else [given[key]]
        raise ValueError(
            f"--{key} {' '.join(map(str, value))}: {method} has no such option; it has "
            f"{', '.join('--' + name for name in known)}"
        )
    return given
