"""What a result was made with."""

import contextlib
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from utils.files import write_json

VERSION = "0.1.0"
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "accelerate", "numpy", "pillow", "scikit-learn")


def write_config(
    save_path: Path, settings: Mapping[str, Any], sources: Mapping[str, str], description: Mapping[str, Any]
) -> None:
    """config.json: every setting and where it comes from, what identifies the run, and what it was made with."""
    value = {"settings": settings, "sources": sources, "description": description, **provenance()}
    write_json(save_path / "config.json", value)


def provenance() -> dict[str, str | None]:
    """What a result was made with: versions, platform, git revision (None outside a checkout)."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "vand_kit": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions,
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        return subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
