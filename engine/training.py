"""One epoch of training; knows a detector by its protocol alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from engine.losses import dice, focal
from utils.distributed import each_round


@dataclass(frozen=True)
class Step:
    """The losses of one training step; loss is what was minimised, the sum of the parts over all maps."""

    epoch: int
    step: int
    loss: float
    focal: float
    dice: float


def train_epoch(
    detector: torch.nn.Module,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    epoch: int,
    *,
    first: int = 1,
    before_step: Callable[[int], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Step], bool]:
    """One pass over the data; the trainable parts minimise focal + dice, summed over the detector's maps.

    Of several processes each takes its part of every batch. Losses are means over images, so a part counts by its share
    of the images, and losses and gradients, added up, are those of the whole batch in one process.

    Args:
        loader: on `distributed.DistributedBatchSampler`; with one process, batches of any kind.
        first: number of the first step; the loader leaves out the batches before it.
        before_step: called with the number of the step that comes; seeds what is drawn in it.
        stop: asked in each step whether it is the last one; one process that says so stops all.

    Returns:
        The steps, and whether `stop` has ended them; the same on all processes.

    Raises:
        ValueError: the loss is NaN or infinite; the weights are those before that step.
    """
    detector.train()
    steps, stopping = [], 0.0
    bar = tqdm(loader, desc=f"epoch {epoch}", unit="batch", disable=None if accelerator.is_main_process else True)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, (length, batch) in enumerate(each_round(loader), start=first):
        before_step(number)
        if batch is None:  # takes part in the sums all the same
            parts = torch.stack([0 * sum(parameter.sum() for parameter in trained)] * 3)
        else:
            parts = _losses(detector, batch, accelerator) * (len(batch["cls_name"]) / length)
        told = torch.cat([parts.detach(), parts.new_tensor([stop()])])  # (4,)
        *shown, stopping = accelerator.reduce(told, "sum").tolist()
        steps.append(Step(epoch, number, *shown))
        if not np.isfinite(steps[-1].loss):
            raise ValueError(
                f"the loss is {steps[-1].loss} at epoch {epoch}, step {number}; lower --learning_rate or use "
                "--precision fp32"
            )
        optimizer.zero_grad()
        accelerator.backward(parts[0])
        _add_up_gradients(trained, accelerator)
        optimizer.step()
        bar.update()
        bar.set_postfix(loss=f"{steps[-1].loss:.3f}")
        if stopping:
            break
    bar.close()
    return steps, stopping > 0


def _losses(detector: torch.nn.Module, batch: Mapping[str, Any], accelerator: Accelerator) -> Tensor:
    """(3,): their sum, focal, dice."""
    images, masks = (batch[key].to(accelerator.device, non_blocking=True) for key in ("image", "mask"))
    with accelerator.autocast():
        probabilities = detector(images, batch["cls_name"])  # each (B, 2, S, S)
    focal_loss = torch.stack([focal(p.float(), masks) for p in probabilities]).sum()
    dice_loss = torch.stack([dice(p[:, 1].float(), masks) for p in probabilities]).sum()
    return torch.stack([focal_loss + dice_loss, focal_loss, dice_loss])


def _add_up_gradients(parameters: Sequence[Tensor], accelerator: Accelerator) -> None:
    """Over all processes, in one message."""
    if accelerator.num_processes == 1:
        return
    own = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    total = accelerator.reduce(torch.cat([one.flatten() for one in own]), "sum")
    for one, part in zip(parameters, total.split([one.numel() for one in parameters]), strict=True):
        one.grad = part.view_as(one).clone()
