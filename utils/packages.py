"""Imported before anything else by the scripts: says in one line which packages are missing, and that somebody has
interrupted the imports, instead of a traceback."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from utils.signals import handle_signals

_NEEDED = ("torch", "torchvision", "open_clip", "accelerate", "safetensors", "numpy", "PIL", "cv2", "sklearn", "jinja2",
           "tabulate", "tqdm")  # fmt: skip

_missing = [name for name in _NEEDED if find_spec(name) is None]
if _missing:
    sys.exit(
        f"error: this Python lacks {', '.join(_missing)}; run `sh quickstart.sh` once and use .venv/bin/python, or "
        "install requirements.txt"
    )


def _end(number: int, _: Any) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


_ROOT, _script = Path(__file__).resolve().parents[1], getattr(sys.modules["__main__"], "__file__", None)
if _script and Path(_script).resolve().parent in (_ROOT, _ROOT / "report"):  # no other program that imports one of them
    handle_signals(_end)  # until `errors.run_script` handles them


def require(what: str, names: tuple[str, ...], requirements: str) -> None:
    """Raises ValueError where optional packages are missing; names them and the command that installs them."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ValueError(f"{what} needs {', '.join(missing)}: pip install -r {requirements}")
