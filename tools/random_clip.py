"""Make the quickstart's CLIP with random weights (fixed seed), so that every part runs without a download.

    python tools/random_clip.py

Writes exps/quickstart/quickstart-clip.safetensors (fp16, 8.7 MB) beside its architecture. It has learned nothing: its
texts mean nothing, and what it finds it owes to adapters and references alone.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model.backbone import Backbone, register_architecture  # noqa: E402 - the checkout is no installed package
from utils import runtime  # noqa: E402

ARCHITECTURE = ROOT / "exps/quickstart/quickstart-clip.json"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.manual_seed(0)
    clip = Backbone(register_architecture(str(ARCHITECTURE))).clip
    state = {key: value.half().contiguous() for key, value in clip.state_dict().items()}
    with runtime.replacing(ARCHITECTURE.with_suffix(".safetensors")) as path:
        save_file(state, path)
        path.chmod(0o644)
    print(f"wrote {ARCHITECTURE.with_suffix('.safetensors')}")


if __name__ == "__main__":
    runtime.run(main)
