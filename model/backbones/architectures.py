"""Architectures of open_clip, by name or by a JSON file: what they say, and building them."""

import contextlib
import difflib
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import open_clip
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer

from model.interface import Normalization
from utils import memory_check
from utils.errors import first_line
from utils.files import check_regular

_LARGEST_FILE = 1 << 20  # bytes of an architecture's JSON
_MOST_LAYERS = 1000  # of a tower or a stage: more take minutes to build, however narrow they are
_VIT_LAYERS = 12  # where an architecture does not say


_NORMALIZATIONS: dict[str, Normalization] = {}  # of registered architectures whose file says one


def register_architecture(config_path: str) -> str:
    """Register an architecture JSON under its stem, which is returned.

    The file holds embed_dim, vision_cfg, text_cfg and, if it likes, preprocess_cfg ({"mean": [r, g, b], "std": [r, g,
    b]}); or, as the open_clip_config.json of a hub, model_cfg and preprocess_cfg. A file that does not exist, but whose
    stem open_clip ships (`./open_clip/model_configs/ViT-L-14-336.json` in published commands), means that architecture.

    Raises:
        ValueError: neither, or no architecture in the file.
    """
    path = Path(config_path)
    config = read_config(path)
    if config is None:
        if path.stem in open_clip.list_models():
            return path.stem
        raise ValueError(
            f"--config_path {config_path}: no such file, and open_clip ships no architecture '{path.stem}'"
            f"{suggest_models(path.stem)}"
        )
    preprocess = config.pop("preprocess_cfg", None) if isinstance(config, dict) else None
    if isinstance(config, dict) and isinstance(config.get("model_cfg"), dict):
        config = config["model_cfg"]
    complete = isinstance(config, dict) and {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys()
    if not complete or path.suffix != ".json":
        raise ValueError(f"--config_path {config_path}: must be a .json file with embed_dim, vision_cfg and text_cfg")
    if "trust_remote_code" in json.dumps(config["text_cfg"]):
        raise ValueError(f"--config_path {config_path}: refused, since trust_remote_code would run code from elsewhere")
    _NORMALIZATIONS.pop(path.stem, None)
    if isinstance(preprocess, dict) and {"mean", "std"} & preprocess.keys():
        where = f"--config_path {config_path}: preprocess_cfg"
        _NORMALIZATIONS[path.stem] = read_normalization(preprocess.get("mean", ()), preprocess.get("std", ()), where)
    # open_clip would read the file again, in the encoding of the system and without a byte order mark.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_text(json.dumps(config), encoding="ascii")
        open_clip.add_model_config(copy)
    return path.stem


def read_config(path: Path) -> Any:
    """What the JSON file holds; None where there is no file."""
    try:
        check_regular(path)
        if path.exists() and path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"{path}: is larger than {_LARGEST_FILE >> 20} MiB, which no architecture needs")
    except ValueError as error:
        raise ValueError(f"--config_path {error}") from None
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"--config_path {path}: no valid JSON ({first_line(error)})") from None


def read_normalization(mean: Any, std: Any, where: str) -> Normalization:
    """Raises ValueError, beginning with `where`, if these are not three numbers each, or a std is not above 0."""
    for name, values in (("mean", mean), ("std", std)):
        numbers = isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) != 3 or not all(map(math.isfinite, values)):
            raise ValueError(f"{where}: {name} must be three numbers, of R, G and B in [0, 1], not {values!r:.80}")
    if min(std) <= 0:
        raise ValueError(f"{where}: each std must be above 0, not {min(std)}")
    (r, g, b), (sr, sg, sb) = mean, std
    return Normalization((float(r), float(g), float(b)), (float(sr), float(sg), float(sb)))


def normalization(model: str) -> Normalization | None:
    """What the file of a registered architecture says; None where it says nothing, or open_clip ships it."""
    return _NORMALIZATIONS.get(model)


def architecture(model: str) -> dict[str, Any]:
    """The architecture's settings. Raises ValueError with the nearest known names where it is unknown."""
    config: dict[str, Any] | None = None
    if ":" not in model:
        config = open_clip.get_model_config(model.replace("/", "-"))
    if config is None:
        raise ValueError(
            f"unknown model '{model}'{suggest_models(model)}; --config_path FILE.json registers one of your own"
        )
    vision, text = config["vision_cfg"], config["text_cfg"]
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise ValueError(f"model '{model}': vision_cfg and text_cfg must be objects")
    for key, value in (("embed_dim", config["embed_dim"]), ("image_size", vision.get("image_size", 224)),
                       ("patch_size", vision.get("patch_size") or 16), ("width", vision.get("width", 64))):  # fmt: skip
        if type(value) is not int or value < 1:
            raise ValueError(f"model '{model}': {key} must be a positive whole number, not {value!r:.80}")
    timm_name = vision.get("timm_model_name")
    if timm_name is not None and (not isinstance(timm_name, str) or not timm.is_model(timm_name)):
        raise ValueError(f"model '{model}': timm has no model {timm_name!r:.80} for its image tower")
    stages = vision.get("layers", _VIT_LAYERS)
    for layers in (*(stages if isinstance(stages, list) else [stages]), text.get("layers", _VIT_LAYERS)):
        if type(layers) is not int or not 1 <= layers <= _MOST_LAYERS:
            raise ValueError(
                f"model '{model}': layers must be whole numbers from 1 to {_MOST_LAYERS}, not {layers!r:.80}"
            )
    return config


Clip: TypeAlias = open_clip.CLIP | open_clip.CustomTextCLIP


def create(model: str, quick_gelu: bool, image_size: int | None) -> tuple[Clip, Clip]:
    """The model with random weights, on the CPU, and the same without data, on the meta device.

    Args:
        image_size: None takes the architecture's own.

    Raises:
        ValueError: weights that memory cannot hold, which is known before they are made; what open_clip cannot build.
    """
    with torch.device("meta"):
        draft = _create(model, quick_gelu, image_size, "meta")
    if not isinstance(draft.visual, VisionTransformer | ModifiedResNet | TimmModel):
        raise ValueError(f"model '{model}': only open_clip's ViTs and ResNets, and towers of timm, give layers")
    need = sum(value.numel() * value.element_size() for value in (*draft.parameters(), *draft.buffers()))
    memory_check.check(need, "cpu", f"the weights of model '{model}'", "take a smaller one")
    return _create(model, quick_gelu, image_size, "cpu"), draft


def _create(model: str, quick_gelu: bool, image_size: int | None, device: str) -> Clip:
    try:
        with silent():
            return open_clip.create_model(
                model, load_weights=False, pretrained_text=False, force_image_size=image_size, quick_gelu=quick_gelu,
                device=device,
            )  # fmt: skip
    except Exception as error:  # whatever an architecture's numbers break, the user needs its name
        raise ValueError(f"model '{model}' cannot be built by open_clip: {first_line(error)}") from None


def suggest_models(model: str) -> str:
    """The nearest names that the libraries know, for a message."""
    wanted = model.partition(".")[0]
    near = [
        name
        for names, cutoff in ((open_clip.list_models(), 0.5), (timm.list_models(), 0.7))
        for name in difflib.get_close_matches(wanted, names, n=3, cutoff=cutoff)
    ]
    near.sort(key=lambda name: -difflib.SequenceMatcher(None, name, wanted).ratio())
    if near:
        return f" (did you mean {', '.join(dict.fromkeys(near))}?)"
    return " (open_clip.list_models() and timm.list_models() list the known ones)"


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
