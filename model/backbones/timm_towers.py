"""CLIPs of open_clip whose image tower is a model of timm: their layers, by the taps of timm's models."""

from typing import Any

import timm
from open_clip.timm_model import TimmModel
from torch import nn

from model.backbones import timm_models
from model.backbones.architectures import silent
from model.backbones.timm_taps import PlainTaps, StageTaps, is_plain, stage_taps


def patch_and_width(timm_name: str) -> tuple[int, int]:
    """Pixels of a patch a side (a CNN: the stride of its last stage), and the width of the last layer."""
    info = timm_models.draft(timm_models.TimmArchitecture(timm_name, timm_name)).feature_info
    return max(int(one["reduction"]) for one in info), int(info[-1]["num_chs"])


def taps(
    name: str, timm_name: str, visual: TimmModel, draft: TimmModel, image_size: int, rule: str
) -> PlainTaps | StageTaps:
    """Token streams of the tower; pooled is the joint embedding of the CLIP.

    Args:
        name: of the CLIP, for messages.
        visual: at its own size, with its weights; its trunk may be replaced by one for images of any shape.
        draft: the same on the meta device.
        image_size: side S of the square input, or its shorter side, in pixels.
        rule: of a position table, see `positions.resample`.

    Raises:
        ValueError: the tower cannot take such images.
    """
    trunk = _for_any_shape(timm_name, visual.trunk)
    if is_plain(trunk):
        visual.trunk = trunk
        return PlainTaps(trunk, rule, visual.head)
    height, width = visual.trunk.pretrained_cfg["input_size"][1:]
    return stage_taps(name, visual.trunk, draft.trunk, image_size, (height, width), visual.head)


def _for_any_shape(timm_name: str, trunk: Any) -> nn.Module:
    """The same ViT built for images of any shape, which open_clip does not ask for; the trunk itself if timm has no
    such thing."""
    if not hasattr(trunk, "dynamic_img_size"):
        return trunk
    with silent():
        built: nn.Module = timm.create_model(
            timm_name, num_classes=trunk.num_classes, global_pool=trunk.global_pool, dynamic_img_size=True
        )
    if built.state_dict().keys() != trunk.state_dict().keys():
        return trunk
    built.load_state_dict(trunk.state_dict())
    return built.eval()
