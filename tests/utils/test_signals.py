"""Ctrl-C and SIGTERM."""

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
