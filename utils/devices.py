"""Device, precision and seed of a run."""

import os
import random
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from utils.errors import first_line
from utils.heap import keep_freed_memory
from utils.launch import process_timeout

if TYPE_CHECKING:
    from accelerate import Accelerator

CPU_BATCH = 16  # of --batch_size auto, where there is no memory of a GPU to fill
PRECISIONS = ("fp32", "bf16", "fp16")


def make_accelerator(device: str, precision: str) -> "Accelerator":
    """Device, precision and processes of a run.

    Args:
        device: "auto" (the first accelerator that is there, else the CPU), "cpu", "cuda", "cuda:1", "mps", ...
        precision: one of PRECISIONS.

    Raises:
        ValueError: a device or precision that is not available on this machine.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs  # here, since it takes a second, and flags need it not

    if device != "auto":
        _check_device(device)
    if ":" in device:  # without a number, each of several processes takes one of its own
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    if precision == "fp16" and (device == "cpu" or not torch.accelerator.is_available()):
        raise ValueError("--precision fp16 needs a GPU; use bf16 or fp32 on the CPU")
    torch.backends.cudnn.allow_tf32 = False  # which rounds to 10 bits the convolutions that are left in full precision
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    if on_cpu:
        keep_freed_memory()
    group = InitProcessGroupKwargs(timeout=process_timeout())
    return Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[group])


def default_precision(device: str) -> tuple[str, str]:
    """The precision of a device where no flag names one, and why: bf16 where a GPU computes with it, fp32 elsewhere."""
    on_gpu = torch.cuda.is_available() and device.partition(":")[0] in ("auto", "cuda")
    if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", f"default on {torch.cuda.get_device_name()}"
    return "fp32", "default on a GPU without bf16" if on_gpu else "default without a GPU that has bf16"


@lru_cache
def side_stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """A stream of a GPU beside the current one, one for each purpose: memory is kept for each."""
    return torch.cuda.Stream(device)


def check_compiler(device: torch.device) -> None:
    """Compile a small function as --compile would. Raises ValueError where nothing here can compile for the device."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # noqa: BLE001 - every back end raises its own where a compiler is missing
        raise ValueError(
            f"--compile: nothing here compiles for {device.type} ({first_line(error)}); install a C++ compiler "
            "(Debian: apt-get install g++), or drop --compile"
        ) from None


def set_seed(seed: int) -> None:
    """Seed every generator that a library may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _check_device(device: str) -> None:
    """Raises ValueError where a device cannot hold a number; names those that can."""
    try:
        torch.zeros(1, device=device).tolist()
    except (AssertionError, RuntimeError) as error:
        # Of a GPU torch says why, such as a driver that is missing; of all others it says much and means "no".
        reason = f" ({first_line(error).partition('. ')[0]})" if device.startswith("cuda") else ""
        raise ValueError(
            f"--device {device}: not available on this machine{reason}; available: {', '.join(_devices())}"
        ) from None


def _devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count()))]
