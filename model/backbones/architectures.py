"""Architectures of open_clip, by name or by a JSON file."""

import contextlib
import difflib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import open_clip


def register_architecture(config_path: str) -> str:
    """Register an architecture JSON under its stem, which is returned.

    A file that does not exist, but whose stem open_clip ships (`./open_clip/model_configs/ViT-L-14-336.json` in
    published commands), means that architecture.

    Raises:
        ValueError: neither, or no architecture in the file.
    """
    path = Path(config_path)
    if not path.is_file():
        if path.stem in open_clip.list_models():
            return path.stem
        raise ValueError(
            f"--config_path {config_path}: no such file, and open_clip ships no architecture '{path.stem}'"
            f"{suggest_models(path.stem)}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"--config_path {config_path}: no valid JSON ({error})") from None
    complete = isinstance(config, dict) and {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys()
    if not complete or path.suffix != ".json":
        raise ValueError(f"--config_path {config_path}: want a .json file with embed_dim, vision_cfg and text_cfg")
    if "trust_remote_code" in json.dumps(config["text_cfg"]):
        raise ValueError(f"--config_path {config_path}: refused, since trust_remote_code would run code from elsewhere")
    open_clip.add_model_config(path)
    return path.stem


def architecture(model: str) -> dict:
    """The architecture's settings. Raises ValueError with the nearest known names where it is unknown."""
    config = open_clip.get_model_config(model.replace("/", "-")) if ":" not in model else None
    if config is None:
        raise ValueError(
            f"unknown model '{model}'{suggest_models(model)}; --config_path FILE.json registers one of your own"
        )
    vision = config["vision_cfg"]
    if not isinstance(vision, dict) or not isinstance(config["text_cfg"], dict):
        raise ValueError(f"model '{model}': vision_cfg and text_cfg must be objects")
    for key, value in (("embed_dim", config["embed_dim"]), ("image_size", vision.get("image_size", 224)),
                       ("patch_size", vision.get("patch_size") or 16), ("width", vision.get("width", 64))):  # fmt: skip
        if type(value) is not int or value < 1:
            raise ValueError(f"model '{model}': {key} must be a positive whole number, not {value!r}")
    if "timm_model_name" in vision:
        raise ValueError(
            f"model '{model}': its image tower comes from timm; only open_clip's own ViTs and ResNets give layers"
        )
    return config


def suggest_models(model: str) -> str:
    near = difflib.get_close_matches(model, open_clip.list_models(), n=4, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else " (open_clip.list_models() lists the known ones)"


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Libraries report through the root logger and warnings; what matters of that we say ourselves, once."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
