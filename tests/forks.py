"""Scripts in processes of their own that begin at once: forks of a server that has imported PyTorch and all the rest.

`start("test.py", ...)` is `python test.py ...` in the checkout, and so are `start("-m", ...)` and `start("-c", ...)`.
`together` stands for torchrun with two processes, of which only its own end and its signals are not the same. A fork
has the server's hash seed, so that what hangs on it shows between a fork and pytest, not between two forks.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import NoReturn

from torch.distributed import TCPStore

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("export", "predict", "test", "train", "open_clip", "timm", "torch.utils.tensorboard", "torch.distributed")


class Run:
    """One run in one or more forks, as subprocess.Popen.

    Attributes:
        returncode: the first that is not 0; None while a process runs.
    """

    def __init__(self, words: tuple, environments: list[dict[str, str]], store: TCPStore | None = None):
        self._store = store  # is there as long as this
        self._files = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in "12"]  # noqa: SIM115
        self._codes: dict[int, int | None] = {}
        self.returncode: int | None = None
        for own in environments:
            request = {"words": [str(word) for word in words], "environment": {**os.environ, **own}}
            self._codes[_ask({**request, "files": [file.name for file in self._files]})] = None

    @property
    def pids(self) -> list[int]:
        return list(self._codes)

    def poll(self) -> int | None:
        for pid, code in self._codes.items():
            self._codes[pid] = _ask({"pid": pid}) if code is None else code
        if None not in self._codes.values():
            self.returncode = next(filter(None, self._codes.values()), 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.poll()
        for pid, code in self._codes.items():
            if code is None:
                os.kill(pid, number)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """What they have said, once all have ended; where one has failed, the others are asked to, as by torchrun."""
        deadline, asked = time.monotonic() + timeout, False
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send_signal(SIGKILL)
                raise TimeoutError(f"{timeout} s: {self._said()}")
            if not asked and any(self._codes.values()):
                time.sleep(0.1)  # as often as torchrun looks
                self.send_signal(SIGTERM)
                asked = True
            time.sleep(0.02)
        return self._said()

    def _said(self) -> tuple[str, str]:
        out, errors = (Path(file.name).read_text(encoding="utf-8") for file in self._files)
        return out, errors


def start(*words, **environment: str) -> Run:
    """`python` with these words; the first is a script of the checkout, -m or -c."""
    return Run(words, [environment])


def run(*words, **environment: str) -> subprocess.CompletedProcess:
    """`start`, and wait until it has ended."""
    process = start(*words, **environment)
    out, errors = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, errors)


def together(*words) -> Run:
    """`start` in two processes that work together, as torchrun starts them. Their store is in this process."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    return Run(words, [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"], store)


# --- the server -----------------------------------------------------------------------------------------------------


@functools.cache
def _server() -> subprocess.Popen:
    pipe, environment = subprocess.PIPE, {"OMP_NUM_THREADS": "1", **os.environ}
    server = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True, env=environment)
    atexit.register(server.communicate)
    return server


def _ask(request: dict) -> int | None:
    """{words, environment, files} -> number of the process that has begun; {pid} -> its exit code, None: it runs."""
    server = _server()
    print(json.dumps(request), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


def serve() -> list[str]:
    """Answer until the other end is closed. Comes back in each new process alone, with the words of its command."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    running: set[int] = set()
    for line in requests:
        request = json.loads(line)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            running.discard(pid)
        else:
            answer = os.fork()
            if not answer:
                requests.close()
                answers.close()
                for number, name in enumerate(request["files"], 1):
                    os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
                os.environ.clear()
                os.environ.update(request["environment"])
                return request["words"]
            running.add(answer)
        print(json.dumps(answer), file=answers, flush=True)
    for pid in running:
        os.kill(pid, SIGKILL)
    os._exit(0)


def become(first: str, *words: str) -> None:
    """What `python first words...` does in the checkout."""
    if first == "-c":
        sys.argv = ["-c", *words[1:]]
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = list(words)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(ROOT / first), *words]
        runpy.run_path(sys.argv[0], run_name="__main__")


def leave(code) -> NoReturn:
    """As an interpreter ends, but for its objects, of which the forks would copy all."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.path[0] = str(ROOT)
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # so that the forks do not copy what they do not change
    words = serve()
    try:
        become(*words)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code)
