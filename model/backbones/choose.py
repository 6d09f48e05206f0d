"""Which library has a model: open_clip, whose models have a text tower, or timm."""

from collections.abc import Sequence
from pathlib import Path

import open_clip

from model.backbones import architectures, timm_models
from model.backbones.clip import Backbone
from model.backbones.timm import TimmBackbone
from model.options import PositionRules


def build_backbone(
    model: str,
    pretrained: str | None = None,
    *,
    config_path: str | None = None,
    image_size: int | None = None,
    quick_gelu: str = "auto",
    position_rule: str = "auto",
    position_rules: PositionRules | None = None,
    half_weights: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    text_for: str | None = None,
) -> Backbone | TimmBackbone:
    """The backbone of a name; see `Backbone` and `TimmBackbone`.

    Args:
        config_path: JSON of an architecture of either library, registered under its stem first.
        position_rules: what "auto" means for the method.
        text_for: name of the method that needs texts; None of one that does not.

    Raises:
        ValueError, OSError: see there; a method that needs texts, on a model without. One line that says what to do.
    """
    if config_path is not None:
        register(config_path)
    if not is_timm(model, text=text_for is not None):
        return Backbone(
            model, pretrained, image_size=image_size, quick_gelu=quick_gelu, half_weights=half_weights, mean=mean,
            std=std, position_rule=position_rule, position_rules=position_rules,
        )  # fmt: skip
    if text_for is not None:
        raise ValueError(
            f"{text_for} compares images with texts, and {model}, a model of timm, has no text tower; take a CLIP of "
            "open_clip, such as ViT-L-14-336, or a method without texts"
        )
    if quick_gelu != "auto":
        raise ValueError(f"--quick_gelu {quick_gelu}: {model} of timm has an activation of its own; drop it")
    return TimmBackbone(
        model, pretrained, image_size=image_size, position_rule=position_rule, position_rules=position_rules, mean=mean,
        std=std,
    )  # fmt: skip


def register(config_path: str) -> str:
    """Register an architecture's file of either library under its stem, which is returned.

    Raises:
        ValueError: see `register_architecture` and `timm_models.register`.
    """
    path = Path(config_path)
    config = architectures.read_config(path)
    if isinstance(config, dict) and "timm_model" in config:
        timm_models.register(path.stem, config, f"--config_path {config_path}")
        return path.stem
    timm_models.forget(path.stem)
    return architectures.register_architecture(config_path)


def is_timm(model: str, *, text: bool) -> bool:
    """Whether timm has the model.

    A few names are in both libraries: open_clip means a CLIP whose image tower is of that architecture. Such a name
    means timm's model, with timm's weights, for a method without texts.
    """
    if not timm_models.known(model):
        return False
    config = open_clip.get_model_config(model) if ":" not in model else None
    if config is None or timm_models.registered(model):
        return True
    return not text and "timm_model_name" in config["vision_cfg"]
