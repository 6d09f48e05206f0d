"""timm's backbones against features that the published programs made with the same weights."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import REFERENCE
from model.backbones.choose import build_backbone

MODELS = REFERENCE / "models"
FACTS = json.loads((REFERENCE / "backbones/features.json").read_text())
with np.load(REFERENCE / "backbones/features.npz") as _arrays:
    ARRAYS = dict(_arrays)


def tiny(name: str, **kwargs):
    """A model of tests/reference, whose weights are in the layout of the official programs."""
    return build_backbone(name, str(MODELS / f"{name}.pt"), config_path=str(MODELS / f"{name}.json"), **kwargs)


def read(facts: dict, patch: int) -> torch.Tensor:
    """The image of a stored feature as its program read it, (1, 3, H, W) uint8."""
    picture = Image.open(REFERENCE / facts["image"]).convert("RGB")
    if "shorter_edge" in facts:
        scale = facts["shorter_edge"] / min(picture.size)
        picture = picture.resize([int(side * scale + 1e-9) for side in picture.size], Image.Resampling.BICUBIC)
        pixels = np.array(picture)
        return torch.from_numpy(pixels[: pixels.shape[0] // patch * patch, : pixels.shape[1] // patch * patch]).permute(
            2, 0, 1
        )[None]
    size = (facts["square"],) * 2
    if facts["resizer"] == "torchvision":
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
        return F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[facts["resizer"]]
    return torch.from_numpy(np.array(picture.resize(size, kind))).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", FACTS)
def test_features_of_published_programs(name, tiny_a):
    facts, expected = FACTS[name], ARRAYS[name]
    if facts["model"] == "tiny-a":
        own = build_backbone(
            tiny_a.model, tiny_a.pretrained, config_path=tiny_a.config_path, image_size=facts["square"],
            position_rule=facts["rule"],
        )  # fmt: skip
    else:
        own = tiny(facts["model"], position_rule=facts["rule"])
    images = read(facts, own.patch)
    if "saliency" in facts:
        found = own.saliency(images, facts["saliency"]).reshape(expected.shape)
    elif "pooled" in facts:
        found = own(images, []).pooled[0]
        found = F.normalize(found, dim=-1) if own.has_text else found
    else:
        layers = own.number_layers("--features_list", facts["layers"])
        patches = own(images, layers, normed=facts.get("normed", False), pooled=False).patches
        found = torch.stack([patches[layer][0] for layer in layers])  # (layers, N, W)
        found = found.mean(0) if expected.ndim == 2 else found
    np.testing.assert_allclose(found.numpy(), expected, atol=facts["tolerance"], rtol=0)
