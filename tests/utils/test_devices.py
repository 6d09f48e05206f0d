"""Devices, precisions and compilers that are not there, and what is taken without a flag."""

import platform
import subprocess
import sys

import pytest
import torch
import torch._inductor.config

from conftest import ROOT
from utils.devices import check_compiler, default_precision, make_accelerator


@pytest.mark.parametrize("device", ["cuda:77", "meta", "banana", "xla", "cuda:x", ":1"])
def test_a_device_that_is_not_there_is_one_short_sentence(device):
    with pytest.raises(ValueError) as error:
        make_accelerator(device, "fp32")
    message = str(error.value)
    assert message.startswith(f"--device {device}: not available on this machine") and "; available: cpu" in message
    assert len(message) < 160 and "\n" not in message


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_no_apple_gpu_is_one_short_sentence():
    with pytest.raises(ValueError, match=r"^--device mps: not available on this machine; available: cpu[^.]*$"):
        make_accelerator("mps", "fp32")


def test_no_compiler_is_one_line(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    line = r"^--compile: nothing here compiles for cpu \(.*install a C\+\+ compiler"
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ValueError, match=line):
        check_compiler(torch.device("cpu"))


def test_precision_without_a_flag():
    """bf16 where a GPU has it; a device that is named counts, not what else is there."""
    assert default_precision("cpu")[0] == "fp32"
    on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    assert default_precision("auto")[0] == ("bf16" if on_gpu else "fp32")


KEPT = """
import resource

import psutil
import torch

from utils.devices import make_accelerator
from utils.memory_check import free_bytes

make_accelerator("cpu", "fp32")
faults = []
for _ in range(60):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000).sum()  # 40 MB, 9,765 pages
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# The first gaps can be a few bytes too short for the next aligned tensor: how many depends on what else was allocated.
assert max(faults[-20:]) < 1000, faults
process, large = psutil.Process(), torch.ones(250_000_000)
during = process.memory_info().rss
del large
free_bytes("cpu")
assert process.memory_info().rss < during - 800_000_000  # what is kept counts as free
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
def test_memory_of_large_tensors_is_kept():
    """In a process of its own: after other tests the heap is in pieces."""
    done = subprocess.run([sys.executable, "-c", KEPT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
