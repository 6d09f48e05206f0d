"""What every benchmark prints beside its figures, and the images it runs on."""

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from utils.runtime import provenance

ROOT = Path(__file__).resolve().parent.parent


def machine() -> str:
    """Processor, cores and the versions that matter, in one line."""
    versions = provenance()
    kept = ("python", "torch", "numpy", "scikit-learn", "open_clip_torch", "accelerate")
    return f"{processor()}, {os.cpu_count()} cores; " + ", ".join(f"{key} {versions[key]}" for key in kept)


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def sample_data() -> Iterator[Path]:
    """The sample data in a temporary folder: demo_textures and demo_objects."""
    with tempfile.TemporaryDirectory() as folder:
        script = ROOT / "data/demo.py"
        subprocess.run([sys.executable, script, "--root", folder], check=True, stdout=subprocess.DEVNULL)
        yield Path(folder)
