"""Methods by name, and how to build a detector: `from model import build`."""

from collections.abc import Sequence

from model.april_gan import AprilGan
from model.backbone import Backbone, register_architecture
from model.interface import Detector

METHODS = {"april_gan": AprilGan}


def build(
    method: str,
    *,
    model: str,
    pretrained: str | None = None,
    config_path: str | None = None,
    image_size: int | None = None,
    quick_gelu: str = "auto",
    features_list: Sequence[int] | None = None,
    few_shot_features: Sequence[int] | None = None,
) -> Detector:
    """A detector on a frozen CLIP.

    Args:
        method: a key of METHODS.
        model: architecture name; `config_path` may register it.
        pretrained: tag or file of weights; None leaves random weights.
        image_size: side of the square input; None takes the architecture's own.
        quick_gelu: "auto", "on" or "off".
        features_list: layers compared with the texts; None takes four evenly spaced ones.
        few_shot_features: layers compared with the references; None takes `features_list`.

    Raises:
        ValueError, OSError: see `Backbone`; one line that names the value and what to do.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; known: {', '.join(METHODS)}")
    if config_path is not None:
        register_architecture(config_path)
    backbone = Backbone(model, pretrained, image_size=image_size, quick_gelu=quick_gelu)
    features_list = list(features_list or backbone.quarter_layers())
    return METHODS[method](
        backbone, features_list=features_list, few_shot_features=list(few_shot_features or features_list)
    )
