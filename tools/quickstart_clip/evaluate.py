"""Measure what the quickstart's CLIP finds in photographs that it was not trained on.

    python -m tools.quickstart_clip.evaluate [--weights FILE ...] [--demo_root data/demo] [--mtd_root data/mtd]

The sample data (data/demo.py): image AUROC without references or adapters; APRIL-GAN trained on one set and tested on
the other, pixel AUROC and AUPRO without references, image AUROC with 4 shots (mean over seeds 1, 2 and 3). The magnetic
tiles (data/mtd.py), where given: image AUROC and, without adapters, pixel AUROC, the tokens of the last block
through the image tower's own last norm and projection against the texts. Several files: their mean in a last line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from dataset import AnomalyDataset, read
from metrics import evaluate
from model import anomaly_map
from model.april_gan import AprilGan
from model.backbones.architectures import register_architecture
from model.backbones.clip import Backbone
from utils.errors import run_script

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "exps/quickstart/quickstart-clip.json"
SETS = ("demo_textures", "demo_objects")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=[str(ARCHITECTURE.with_suffix(".safetensors"))], metavar="FILE")
    parser.add_argument("--demo_root", default=str(ROOT / "data/demo"), metavar="DIR")
    parser.add_argument("--mtd_root", metavar="DIR", help="left out where not given")
    parser.add_argument("--classes", action="store_true", help="every class, not the means alone")
    args = parser.parse_args(argv)
    model = register_architecture(str(ARCHITECTURE))
    found = []
    for weights in args.weights:
        rows = across_sets(model, weights, Path(args.demo_root))
        if args.mtd_root:
            rows |= without_adapters(model, weights, Path(args.mtd_root))
        found.append({key: row for key, row in rows.items() if args.classes or "/" not in key})
        show(weights, found[-1])
    if len(found) > 1:
        show("mean", {key: sum(row[key] for row in found) / len(found) for key in found[0]})


def show(title: str, row: dict[str, float]) -> None:
    print(f"{title}: " + ", ".join(f"{key} {100 * value:.1f}" for key, value in row.items()), flush=True)


def across_sets(model: str, weights: str, root: Path) -> dict[str, float]:
    """Measure -> fraction, for both directions between the two sets of the sample data, and for their classes."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        common = ["--model", model, "--config_path", str(ARCHITECTURE), "--pretrained", weights, "--num_workers", "0"]
        for trained_on, tested_on in (SETS, SETS[::-1]):
            adapters, results = f"{folder}/trained_on_{trained_on}", f"{folder}/{tested_on}"
            run("train.py", [*common, "--dataset", trained_on, "--train_data_path", str(root / trained_on),
                                        "--save_path", adapters])  # fmt: skip
            run("test.py", [*common, "--dataset", tested_on, "--data_path", str(root / tested_on),
                                       "--checkpoint_path", adapters, "--save_path", results, "--no_images",
                                       "--k_shot", "0", "4", "--seed", "1", "2", "3"])  # fmt: skip
            measured = json.loads(Path(results, "metrics.json").read_text())
            zero = measured["runs"][0]
            parts = {"": (zero["mean"], measured["mean"]["4"]["auroc_sp"])}
            for name, row in zero["classes"].items():
                four = [run["classes"][name]["auroc_sp"] for run in measured["runs"][1:]]
                parts["/" + name] = row, sum(four) / len(four)
            for name, (row, four) in parts.items():
                key = tested_on + name
                rows |= {f"{key} image": row["auroc_sp"], f"{key} pixel": row["auroc_px"], f"{key} aupro": row["aupro"],
                         f"{key} 4-shot image": four}  # fmt: skip
    for measure in ("image", "pixel", "aupro", "4-shot image"):
        rows[f"both {measure}"] = sum(rows[f"{name} {measure}"] for name in SETS) / 2
    return rows


def run(script: str, flags: Sequence[str]) -> None:
    """Raises RuntimeError where the script fails; with its last lines."""
    done = subprocess.run([sys.executable, ROOT / script, *flags], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr[-2000:]}")


@torch.no_grad()
def without_adapters(model: str, weights: str, root: Path) -> dict[str, float]:
    """Image and pixel AUROC of a dataset of one class; the map is the joint embedding of the last block's tokens."""
    detector = AprilGan(Backbone(model, weights))
    backbone, samples = detector.backbone, read(root)["test"]
    text = detector.texts([samples[0].cls_name])  # (1, D, 2)
    scores, heat, masks = [], [], []
    for batch in DataLoader(AnomalyDataset(root, samples, backbone.image_size), 16):
        tokens = backbone(batch["image"], {backbone.depth})
        last = joint_patches(backbone, tokens.patches[backbone.depth])
        logits = anomaly_map.state_logit(last, text.expand(len(last), -1, -1), 100.0)
        grid = tokens.grids[backbone.depth]
        heat += list(anomaly_map.upsample(logits, grid, backbone.image_size, align_corners=False).numpy())
        masks += list(batch["mask"].numpy())
        scores += anomaly_map.state_logit(tokens.pooled[:, None], text.expand(len(last), -1, -1), 100.0)[:, 0].tolist()
    row = evaluate(heat, masks, [sample.anomaly for sample in samples], scores)
    return {"tiles image": row["auroc_sp"], "tiles pixel": row["auroc_px"], "tiles aupro": row["aupro"]}


def joint_patches(backbone: Backbone, patches: torch.Tensor) -> torch.Tensor:
    """Patch tokens of the last block, (B, N, W), in the joint embedding, (B, N, D), as the class token gets there."""
    visual = backbone.clip.visual
    return visual.ln_post(patches) @ visual.proj


if __name__ == "__main__":
    run_script(main)
