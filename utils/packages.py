"""Imported before anything else by the scripts: says in one line which packages are missing, instead of a traceback."""

import sys
from importlib.util import find_spec

_NEEDED = ("torch", "torchvision", "open_clip", "accelerate", "safetensors", "numpy", "PIL", "cv2", "sklearn", "jinja2",
           "tabulate", "tqdm")  # fmt: skip

_missing = [name for name in _NEEDED if find_spec(name) is None]
if _missing:
    sys.exit(
        f"error: this Python lacks {', '.join(_missing)}; run `sh quickstart.sh` once and use .venv/bin/python, or "
        "install requirements.txt"
    )


def require(what: str, names: tuple[str, ...], requirements: str) -> None:
    """Raises ValueError where optional packages are missing; names them and the command that installs them."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ValueError(f"{what} needs {', '.join(missing)}: pip install -r {requirements}")
