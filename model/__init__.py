"""Methods by name, and how to build a detector: `from model import build`."""

from typing import Any

from model.april_gan import AprilGan
from model.backbones.architectures import register_architecture
from model.backbones.clip import Backbone
from model.clip_ad import Sdp, SdpPlus
from model.interface import Detector
from model.vcp_clip import VcpClip
from model.winclip import WinClip
from prompt_ensemble import Prompts

METHODS = {"april_gan": AprilGan, "winclip": WinClip, "sdp": Sdp, "sdp_plus": SdpPlus, "vcp_clip": VcpClip}


def build(
    method: str,
    *,
    model: str,
    pretrained: str | None = None,
    config_path: str | None = None,
    image_size: int | None = None,
    quick_gelu: str = "auto",
    prompts: Prompts | None = None,
    **options: Any,
) -> Detector:
    """A detector on a frozen CLIP.

    Args:
        method: a key of METHODS.
        model: architecture name; `config_path` may register it.
        pretrained: tag or file of weights; None leaves random weights.
        image_size: side of the square input; None takes the architecture's own.
        quick_gelu: "auto", "on" or "off".
        prompts: states and templates; None takes the method's own.
        options: the method's own, as its class documents them (`features_list=[6, 12]`, `scales=[2, 3]`, ...); None
            takes its default.

    Raises:
        ValueError, OSError: see `Backbone`; an option that the method does not have. One line that says what to do.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; known: {', '.join(METHODS)}")
    _check_options(method, options)
    if config_path is not None:
        register_architecture(config_path)
    half = METHODS[method].HALF_WEIGHTS
    backbone = Backbone(model, pretrained, image_size=image_size, quick_gelu=quick_gelu, half_weights=half)
    return build_on(backbone, method, prompts=prompts, **options)


def build_on(backbone: Backbone, method: str, *, prompts: Prompts | None = None, **options: Any) -> Detector:
    """As `build`, on a backbone that is there already."""
    given = _check_options(method, options)
    if prompts is not None:
        given["prompts"] = prompts
    return METHODS[method](backbone, **given)


def _check_options(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that are given. Raises ValueError for one that the method does not have."""
    given = {key: value for key, value in options.items() if value is not None}
    for key in given.keys() - set(METHODS[method].OPTIONS):
        value = given[key] if isinstance(given[key], list | tuple) else [given[key]]
        raise ValueError(
            f"--{key} {' '.join(map(str, value))}: {method} has no such option; it has "
            f"{', '.join('--' + option for option in METHODS[method].OPTIONS)}"
        )
    return given
