"""app.py under load: 200 requests from 8 clients at once, a fifth of them bad, three times.

    pip install -r requirements-app.txt
    python tests/stress/app_load.py                  # some 4 minutes; the server is a process of its own

Every good request must get the score that the same one got alone, every bad one a sentence that says why; uploads that
are too large must be refused by the server, and its memory must stay at the level of the first 200. Ends with exit code
1 where anything of that is not so.
"""

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
from gradio_client import Client, handle_file
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BRICK = ROOT / "tests/reference/data/mini_mvtec/brick"
IMAGES = sorted(str(path) for path in (BRICK / "test").rglob("*.png"))
NORMAL = sorted(str(path) for path in (BRICK / "train/good").glob("*.png"))
SETS = ([], NORMAL[:1], NORMAL[:3], NORMAL[4:8])
ROUNDS, GROWTH = 3, 1.05  # of the server's memory, from after the first round to after the last


def start(folder: Path) -> tuple[subprocess.Popen, str]:
    """The server with small limits; its address."""
    flags = ["--max_megabytes", "1", "--max_pixels", "250000", "--max_references", "4", "--image_size", "64"]
    server = subprocess.Popen([sys.executable, ROOT / "app.py", *flags], stdout=subprocess.PIPE, text=True, cwd=ROOT,
                              stderr=(folder / "errors.txt").open("w"))  # fmt: skip
    for line in server.stdout:
        if found := re.search(r"open (http\S+)", line):
            return server, found[1]
    raise SystemExit(f"app.py did not start: {(folder / 'errors.txt').read_text()[-500:]}")


def bad_requests(folder: Path) -> list[tuple[str, str, list[str], str]]:
    """(image, name, references, what the answer must say)"""
    (folder / "text.png").write_text("no image")
    (folder / "half.png").write_bytes(Path(IMAGES[0]).read_bytes()[:2000])
    Image.new("L", (600, 600)).save(folder / "large.png")
    frames = [Image.fromarray(np.full((20, 20), value, np.uint8)) for value in (0, 99)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    return [
        (str(folder / "text.png"), "brick", [], "text.png is not an image"),
        (str(folder / "half.png"), "brick", [], "half.png: unreadable image"),
        (str(folder / "large.png"), "brick", [], "megapixels are allowed"),
        (str(folder / "moving.gif"), "brick", [], "several pictures in one file"),
        (IMAGES[0], "", [], "Type what the image shows"),
        (IMAGES[0], "brick", NORMAL[:5], "4 are allowed"),
        (IMAGES[0], "x" * 200, [], "80 are allowed"),
        (IMAGES[0], "brick", [str(folder / "half.png")], "half.png: unreadable image"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="requests of a round")
    parser.add_argument("--clients", type=int, default=8, help="at the same time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tempfile.tempdir = name  # the client leaves an empty folder there for each picture that it gets
        server, address = start(folder)
        try:
            return attack(args, folder, address, psutil.Process(server.pid))
        finally:
            server.terminate()
            server.wait(30)


def attack(args: argparse.Namespace, folder: Path, address: str, server: psutil.Process) -> int:
    clients = [Client(address, verbose=False, download_files=str(folder)) for _ in range(args.clients)]
    bad = bad_requests(folder)

    def ask(client: Client, image: str, name: str, references: list[str]) -> float:
        files = [{"image": handle_file(path), "caption": None} for path in references]
        return client.predict(handle_file(image), name, files or None, 0.75, 0.5, api_name="/inspect")[2]["score"]

    good = [(image, references) for image in IMAGES[:6] for references in SETS]
    alone = [ask(clients[0], image, "brick", references) for image, references in good]
    memory = [server.memory_info().rss / 1e6]
    wrong, seconds = [], []

    def one(number: int) -> None:
        began = time.perf_counter()
        client = clients[number % args.clients]
        if number % 5 == 4:
            image, name, references, said = bad[number // 5 % len(bad)]
            try:
                wrong.append(f"request {number} was answered: {ask(client, image, name, references)}")
            except Exception as error:
                if said not in str(error):
                    wrong.append(f"request {number}: {error} (want: {said})")
        else:
            place = number % len(good)
            try:
                score = ask(client, good[place][0], "brick", good[place][1])
                if abs(score - alone[place]) > 1e-5:
                    wrong.append(f"request {number}: {score}, alone {alone[place]}")
            except Exception as error:
                wrong.append(f"request {number}: {error}")
        seconds.append(time.perf_counter() - began)

    order = list(range(args.count))
    random.Random(0).shuffle(order)
    start = time.perf_counter()
    for _ in range(ROUNDS):
        with ThreadPoolExecutor(args.clients) as pool:
            list(pool.map(one, order))
        memory.append(server.memory_info().rss / 1e6)
    took = time.perf_counter() - start
    if httpx.post(f"{address}gradio_api/upload", files={"files": ("big.png", bytes(2_000_000))}).status_code != 413:
        wrong.append("an upload of 2 MB was taken, and 1 MB is allowed")
    if memory[-1] > GROWTH * memory[1]:
        wrong.append(f"memory grew from {memory[1]:.0f} to {memory[-1]:.0f} MB")
    refused = len([number for number in order if number % 5 == 4])
    print(f"{ROUNDS} x {args.count - refused} good, {refused} bad requests from {args.clients} clients: {took:.0f} s")
    print(f"median {np.median(seconds):.2f} s, slowest {max(seconds):.2f} s; memory, at first,")
    print(f"and after each round: {' '.join(f'{one:.0f}' for one in memory)} MB")
    for line in wrong:
        print(line)
    if wrong:
        print((folder / "errors.txt").read_text()[-3000:])
    print(f"{len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
