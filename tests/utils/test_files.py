"""Files that appear whole or not at all, files that are none, and two runs in one folder at once."""

import gc
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import numpy as np
import pytest

from conftest import ROOT
from utils.files import (
    LOCK,
    atomic_write,
    check_regular,
    clear_leftovers,
    clear_results,
    file_digest,
    load_array,
    lock_folder,
    read_json,
    save_array,
    write_json,
)

RUN = """
import sys, time
from pathlib import Path
from utils.errors import run_script
from utils.files import lock_folder

def main():
    with lock_folder(Path(sys.argv[1])):
        print("writes", flush=True)
        sys.stdin.readline()

run_script(main)
"""


def start(folder, **environment) -> subprocess.Popen:
    pipe = subprocess.PIPE
    command, env = [sys.executable, "-c", RUN, str(folder)], {**os.environ, **environment}
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


def test_atomic_write_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


class Garbage:
    """Collected while a header is parsed; what it then runs lets another thread go on."""

    def __init__(self):
        self.me = self

    def __del__(self):
        for _ in range(50):
            pass


def test_threads_read_arrays_at_once(tmp_path):
    save_array(tmp_path / "a.npy", np.eye(3))

    def read(depth: int) -> float:
        if depth:
            return read(depth - 1)  # threads that stand at different depths
        garbage = [Garbage() for _ in range(5)]
        del garbage
        return float(load_array(tmp_path / "a.npy").sum())

    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert set(threads.map(read, [0, 3, 6, 9] * 200)) == {3.0}
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for path, kind in (("fifo", "FIFO (named pipe)"), ("link", "FIFO (named pipe)"), ("folder", "folder"),
                       ("socket", "socket"), ("/dev/null", "device")):  # fmt: skip
        path = tmp_path / path
        with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: is a {kind}, not a file')}$"):
            check_regular(path)
    (tmp_path / "file").touch()
    (tmp_path / "broken link").symlink_to("nowhere")
    for name in ("file", "missing", "broken link"):
        check_regular(tmp_path / name)


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    """It says who writes there; when that run has ended, or was killed, the folder is free."""
    first = start(tmp_path / "results")
    assert first.stdout.readline() == "writes\n"
    second = start(tmp_path / "results")
    out, errors = second.communicate(timeout=60)
    assert second.returncode == 2 and out == ""
    who = rf"process {first.pid} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    folder = re.escape(str(tmp_path / "results"))
    assert re.fullmatch(
        f"error: {folder}: another run writes there \\({who}\\); wait for it, or name another folder\n", errors
    )
    elsewhere = start(tmp_path / "other")
    assert elsewhere.communicate("\n", timeout=60)[0] == "writes\n"
    first.kill()
    first.wait()
    third = start(tmp_path / "results")
    assert third.communicate("\n", timeout=60)[0] == "writes\n" and third.returncode == 0
    assert not list((tmp_path / "results").iterdir())
    for pipe in (first.stdin, first.stdout, first.stderr):
        pipe.close()


def test_only_the_first_of_several_processes_takes_the_lock(tmp_path, monkeypatch):
    with lock_folder(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with lock_folder(tmp_path):
            assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(ValueError, match=f"another run writes there \\(process {os.getpid()} on"):
            lock_folder(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def test_a_worker_that_outlives_a_killed_run_holds_no_lock(tmp_path):
    """As those of a DataLoader do for some seconds."""
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom utils.files import lock_folder\n"
        "with lock_folder(Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n        print(os.getpid(), flush=True)\n        time.sleep(60)\n        os._exit(0)\n"
        "    time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker = int(run.stdout.readline())
    run.kill()
    run.wait()
    try:
        with lock_folder(tmp_path):
            os.kill(worker, 0)
    finally:
        os.kill(worker, signal.SIGKILL)
        run.stdout.close()


def test_a_lock_file_that_leads_elsewhere_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / LOCK).symlink_to("precious")
    with pytest.raises(ValueError, match="lock: is a link, which is not followed"):
        lock_folder(tmp_path).__enter__()
    assert (tmp_path / "precious").read_text() == "kept"


def test_leftovers_of_a_killed_run_are_cleared_and_no_other_file(tmp_path):
    (tmp_path / ".0123456789abcdef0123456789abcdef.json").touch()
    (tmp_path / LOCK).touch()
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_names_that_are_no_text_come_back_from_json(tmp_path):
    write_json(tmp_path / "a.json", {"path": "bytes \udc80 é"})
    assert (tmp_path / "a.json").read_bytes().decode() == '{\n  "path": "bytes \\udc80 é"\n}\n'
    assert read_json(tmp_path / "a.json") == {"path": "bytes \udc80 é"}


def test_a_digest_is_of_contents_alone(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two" * 500_000), ("c", b"one")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (tmp_path / name for name in "abc")
    assert file_digest([a, b]) == file_digest([b, c]) != file_digest([a, a])
    assert file_digest([a]) == sha256(sha256(b"one").digest()).hexdigest()[:16]
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="fifo: is a FIFO"):
        file_digest([tmp_path / "fifo"])


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"\xff", b"9" * 5000, b""])
def test_a_broken_json_file_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: not valid JSON"):
        read_json(path)


def test_a_byte_order_mark_is_no_part_of_a_json_file(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("content", ["[" * 100_000, "3", '"vand_kit"', '["vand_kit"]', "{}", "null"])
def test_results_are_cleared_beside_a_config_of_this_toolkit_alone(tmp_path, content):
    (tmp_path / "table.md").touch()
    for config, left in ((content, True), ('{"vand_kit": "0.1.0"}', False)):
        (tmp_path / "config.json").write_text(config)
        clear_results(tmp_path, ["table.md"])
        assert (tmp_path / "table.md").exists() is left


def test_a_config_that_is_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "table.md").touch()
    clear_results(tmp_path, ["table.md"])
    assert (tmp_path / "table.md").exists()
