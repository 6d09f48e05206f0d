"""Methods by name, and how to build a detector: `from model import build`."""

from collections.abc import Sequence

from model.april_gan import AprilGan
from model.backbone import Backbone, register_architecture
from model.interface import Detector
from model.winclip import WinClip

METHODS = {"april_gan": AprilGan, "winclip": WinClip}


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
    scales: Sequence[int] | None = None,
) -> Detector:
    """A detector on a frozen CLIP.

    Args:
        method: a key of METHODS.
        model: architecture name; `config_path` may register it.
        pretrained: tag or file of weights; None leaves random weights.
        image_size: side of the square input; None takes the architecture's own.
        quick_gelu: "auto", "on" or "off".
        features_list, few_shot_features, scales: options of the methods that have them; None takes their own defaults.

    Raises:
        ValueError, OSError: see `Backbone`; an option that the method does not have. One line that says what to do.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; known: {', '.join(METHODS)}")
    options = {"features_list": features_list, "few_shot_features": few_shot_features, "scales": scales}
    given = {key: list(value) for key, value in options.items() if value is not None}
    for key in given.keys() - set(METHODS[method].OPTIONS):
        raise ValueError(f"--{key} {' '.join(map(str, given[key]))}: {method} has no such option; drop it")
    if config_path is not None:
        register_architecture(config_path)
    return METHODS[method](Backbone(model, pretrained, image_size=image_size, quick_gelu=quick_gelu), **given)
