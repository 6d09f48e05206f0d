"""Ctrl-C, SIGTERM and a closed terminal."""

import signal
import subprocess
import sys

from conftest import ROOT

HELD = """
import os, signal
from utils.signals import HeldSignals
with HeldSignals() as signals:
    os.kill(os.getpid(), signal.SIGTERM)
    print(signals.number, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still there")
"""


def test_the_first_signal_is_held_and_the_second_is_not():
    done = subprocess.run([sys.executable, "-c", HELD], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, f"{int(signal.SIGTERM)}\n")


CLOSED = """
import os, signal
from utils.errors import run_script
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup
run_script(lambda: os.kill(os.getpid(), signal.SIGHUP), "what is kept")
"""


def test_a_closed_terminal_ends_a_run_as_ctrl_c_does():
    done = subprocess.run([sys.executable, "-c", CLOSED], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (129, "interrupted: what is kept\n")
