"""train.py and test.py, killed at random moments and resumed each time, end with the files of a run that was not.

    python tests/stress/interruption.py              # 30 kills of each, some 20 minutes on 2 cores
    python tests/stress/interruption.py --count 5 --seed 7

The training (VCP-CLIP, which draws in each step, with mosaics and a second dataset beside it) is ended by SIGKILL, at a
random time after it has begun or at a random file that is just written; then again by SIGINT and SIGTERM. The test
(APRIL-GAN, three settings, with maps and overlays) is killed at random files. Compared are the checkpoints, bit for
bit, losses.csv, validation.csv and all curves and pictures of TensorBoard; all bytes of all files of the test but
log.txt, config.json and these settings in the page. Ends with exit code 1 where anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

if __name__ == "__main__":  # as a script, beside the packages of the checkout
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from conftest import REFERENCE, copy_dataset, unpack_weights  # noqa: E402

# Runs a script, and kills it when the nth file has been written and waits for its name.
KILLED = """
import os, runpy, signal, sys
left, replace = int(sys.argv[1]), os.replace
def counted(*names):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)
os.replace, sys.argv = counted, sys.argv[2:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def same_training(whole: Path, other: Path) -> None:
    """Raises AssertionError where two folders of train.py differ in more than log.txt, config.json and the hours."""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (whole, other)]
    assert names[0] == names[1], names
    for path in whole.glob("*.csv"):
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name
    for path in whole.glob("*.pth"):
        same_content(*(torch.load(folder / path.name, weights_only=True) for folder in (whole, other)), path.name)
    one, two = (drawn(folder) for folder in (whole, other))
    assert one.keys() == two.keys(), (one.keys(), two.keys())
    for tag in one:
        assert one[tag] == two[tag], (tag, one[tag], two[tag])


def same_content(one, other, place: str) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            same_content(one[key], other[key], f"{place}: {key}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def drawn(folder: Path) -> dict[str, list]:
    """Tag -> (step, value or picture) of the curves."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    pictures = {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]}
    return scalars | pictures


def differences(whole: Path, other: Path) -> list[str]:
    """The files of test.py that are in one folder alone, or differ; but for log.txt, config.json, and the two settings
    in report.html that say where the run went and how it began."""
    found = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (whole, other)
    ]
    for files in found:
        lines = files["report.html"].splitlines()
        files["report.html"] = [line for line in lines if b"save_path" not in line and b"resume" not in line]
    names = (found[0].keys() | found[1].keys()) - {"log.txt", "config.json"}
    return sorted(name for name in names if found[0].get(name) != found[1].get(name))


def killed(count: int | None, script: str, *argv) -> subprocess.Popen:
    """A run of a script, which dies at the countth file that it writes (None: does not)."""
    start = [] if count is None else ["-c", KILLED, str(count)]
    command = [sys.executable, *start, str(ROOT / script), *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def ended(process: subprocess.Popen, codes: tuple[int, ...]) -> int:
    _, errors = process.communicate()
    if process.returncode not in codes:
        raise AssertionError(f"exit code {process.returncode}: {errors}")
    return process.returncode


def train_and_kill(folder: Path, flags: list, count: int, rng: random.Random) -> str:
    """Twice `count` runs that are ended: half of them killed, half asked to stop. Returns what was done."""
    ended(killed(None, "train.py", *flags, "--save_path", folder / "whole"), (0,))
    done = {"killed": 0, "killed at a file": 0, "interrupted": 0, "over before": 0}
    command = ["train.py", *flags, "--save_path", folder / "parts", "--resume"]
    log = folder / "parts/log.txt"
    for turn in range(2 * count):
        if turn % 4 == 1:
            code = ended(killed(rng.randint(1, 8), *command), (0, -signal.SIGKILL))
            done["killed at a file" if code else "over before"] += 1
            continue
        before = log.stat().st_mtime_ns if log.is_file() else 0
        process = killed(None, *command)
        while process.poll() is None and not (log.is_file() and log.stat().st_mtime_ns > before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 3))
        number = signal.SIGKILL if turn < count else rng.choice((signal.SIGINT, signal.SIGTERM))
        process.send_signal(number)
        code = ended(process, (0, -signal.SIGKILL, -signal.SIGTERM, 130, 143))  # SIGTERM itself: main was over
        over = code in (0, -signal.SIGTERM)
        done["over before" if over else "killed" if number == signal.SIGKILL else "interrupted"] += 1
    ended(killed(None, *command), (0,))
    same_training(folder / "whole", folder / "parts")
    assert not list((folder / "parts").glob(".*")), "something is left"
    return ", ".join(f"{what} {times}" for what, times in done.items())


def test_and_kill(folder: Path, flags: list, count: int, rng: random.Random) -> str:
    """`count` runs that are killed at random files."""
    ended(killed(None, "test.py", *flags, "--save_path", folder / "whole"), (0,))
    files = sum(path.is_file() for path in (folder / "whole").rglob("*"))
    kills = reused = 0
    for _ in range(count):
        kills += ended(killed(rng.randint(1, files), "test.py", *flags, "--save_path", folder / "parts", "--resume"),
                       (0, -signal.SIGKILL)) != 0  # fmt: skip
        reused += (folder / "parts/finished").is_dir()
    ended(killed(None, "test.py", *flags, "--save_path", folder / "parts", "--resume"), (0,))
    found = differences(folder / "whole", folder / "parts")
    assert not found, found
    return f"killed {kills} of {count}, {reused} times with finished classes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30, help="kills of each script")
    parser.add_argument("--epoch", type=int, default=120, help="epochs of the training")
    parser.add_argument("--only", choices=("test.py", "train.py"), help="one of the scripts alone")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    failed = 0
    with tempfile.TemporaryDirectory(prefix="interruption-") as name:
        folder = Path(name)
        tiny = [*unpack_weights("tiny-a", folder).flags, "--device", "cpu", "--num_workers", 1]
        mvtec, visa = copy_dataset("mini_mvtec", "mvtec.py", folder), copy_dataset("mini_visa", "visa.py", folder)
        training = [*tiny, "--image_size", 64, "--method", "vcp_clip", "--train_data_path", mvtec, "--batch_size", 3,
                    "--aug_rate", 0.5, "--epoch", args.epoch, "--class", "brick", "--val_dataset", "visa",
                    "--val_data_path", visa]  # fmt: skip
        checkpoint = REFERENCE / "cases/aprilgan_train_mvtec/checkpoint.pth"
        test = [*tiny, "--image_size", 96, "--data_path", mvtec, "--checkpoint_path", checkpoint, "--k_shot", 0, 1, 2,
                "--seed", 3, "--save_maps", "--batch_size", 5]  # fmt: skip
        for script, check, flags in (("test.py", test_and_kill, test), ("train.py", train_and_kill, training)):
            if args.only not in (None, script):
                continue
            (folder / script).mkdir()
            start = time.perf_counter()
            try:
                said = check(folder / script, flags, args.count, rng)
            except AssertionError as error:
                said, failed = f"FAILED: {error}", 1
            print(f"{script}: {said}; {time.perf_counter() - start:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
