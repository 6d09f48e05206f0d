"""Measure on the machine at hand and print one table of times and ratios.

    python -m benchmarks                        # everything; README.md says how long it takes
    python -m benchmarks --only methods cache   # some parts
    python -m benchmarks --quick                # smaller models, fewer images: whether it works, not how fast it is

Each part runs in a process of its own, so that none sees the memory or the settings of another. Times are medians of
several turns; where two sides are compared, they take turns. What a part needs and does not find (a GPU, anomalib) is
said in its row. The exit code is 1 where a part failed.
"""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.common import ROOT, machine

PARTS = {
    "run": "a whole test run, pictures and report included, against the backbone alone",
    "pictures": "overlays a second and core, and a run with pictures against one without",
    "reading": "images a second and worker: decoded and resized",
    "methods": "images per second, and share of the time outside the backbone",
    "settings": "few-shot: twelve settings in one pass, with and without pictures, against one, and the published loop",
    "cache": "a second run with --feature_cache against the first",
    "scaling": "from 40 to 4000 images, and from 1 to 2 processes",
    "precision": "bf16 against fp32",
    "metrics": "pixel metrics against scikit-learn with scikit-image, and against anomalib",
    "measures": "what each of --measures takes beside the usual pixel metrics, and memory at the pictures' own size",
    "accuracy": "pixel metrics: how far the counted keys are from exact numbers",
    "winclip": "WinCLIP against its floor, and against anomalib's",
    "anomaly_dino": "AnomalyDINO, image by image, against the backbone alone and the published loop",
    "bank": "the search of a memory bank against faiss-cpu",
    "mutual": "MuSc: comparing the images of a set, against the published loop",
    "texts": "VCP-CLIP's texts of a batch against image by image",
    "backbones": "backbones of timm: images per second, and against timm's own forward",
    "subspace": "SubspaceAD's fit and scoring against the plain forward of its backbone",
    "startup": "--help of every script against the import of PyTorch",
    "gpu": "the backbone against the device's matrix products",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small, to see that it works")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # what each part's process is called with
    args = parser.parse_args(argv)
    if args.part:
        for row in importlib.import_module(f"benchmarks.{args.part}").measure(args.quick):
            print(f"| {args.part} | " + " | ".join(row) + " |", flush=True)
        return 0
    print(f"{machine()}{' (--quick: the figures mean nothing)' if args.quick else ''}\n")
    print("| part | measured | median | ratio | wanted |\n|---|---|---|---|---|", flush=True)
    failed = 0
    for part in args.only or PARTS:
        command = [sys.executable, "-m", "benchmarks", "--part", part, *["--quick"] * args.quick]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            failed = 1
            print(f"{part} failed:\n{done.stderr}", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
