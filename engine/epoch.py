"""One epoch of training: the steps, their losses, and the gradients of several processes added up. The method says what
is minimised (`loss`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from engine.loss_log import Step
from model.interface import LabeledBatch, TrainableDetector
from utils.distributed import each_round
from utils.progress import Progress


def train_epoch(
    detector: TrainableDetector,
    loader: DataLoader[Any],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    epoch: int,
    *,
    first: int = 1,
    before_step: Callable[[int], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Step], bool]:
    """One pass over the data; the trainable parts minimise the sum of the detector's losses.

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
    steps, stopping, names = [], 0.0, detector.LOSSES
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with Progress(len(loader), f"epoch {epoch}", "batch", shown=accelerator.is_main_process) as progress:
        for number, (length, batch) in enumerate(each_round(loader), start=first):
            before_step(number)
            if batch is None:  # takes part in the sums all the same
                losses = torch.stack([0 * sum(parameter.sum() for parameter in trained)] * (1 + len(names)))
            else:
                losses = _losses(detector, batch, accelerator) * (len(batch["cls_name"]) / length)
            sums = accelerator.reduce(torch.cat([losses.detach(), losses.new_tensor([stop()])]), "sum").tolist()
            loss, *parts, stopping = sums
            steps.append(Step(epoch, number, loss, dict(zip(names, parts, strict=True))))
            if not np.isfinite(loss):
                raise ValueError(
                    f"the loss is {loss} at epoch {epoch}, step {number}; lower --learning_rate or use --precision fp32"
                )
            optimizer.zero_grad()
            accelerator.backward(losses[0])
            _add_up_gradients(trained, accelerator)
            optimizer.step()
            progress.update(loss=f"{loss:.3f}")
            if stopping:
                break
    return steps, stopping > 0


def _losses(detector: TrainableDetector, batch: Mapping[str, Any], accelerator: Accelerator) -> Tensor:
    """(1 + parts,): the sum of the parts, and each of them in the order of the detector's LOSSES."""
    images, masks, labels = (batch[key].to(accelerator.device, non_blocking=True) for key in ("image", "mask", "label"))
    with accelerator.autocast():
        named = detector.loss(LabeledBatch(images, masks, labels, batch["cls_name"]))
    parts = torch.stack([named[name] for name in detector.LOSSES])
    return torch.cat([parts.sum()[None], parts])


def _add_up_gradients(parameters: Sequence[Tensor], accelerator: Accelerator) -> None:
    """Over all processes, in one message."""
    if accelerator.num_processes == 1:
        return
    own = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    total = accelerator.reduce(torch.cat([one.flatten() for one in own]), "sum")
    for one, part in zip(parameters, total.split([one.numel() for one in parameters]), strict=True):
        one.grad = part.view_as(one).clone()
