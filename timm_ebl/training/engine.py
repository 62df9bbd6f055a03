"""The loop of a run: an epoch of training, an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, skip_first_batches
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.loader import Stream, epoch_generator
from ..errors import Diverged
from ..rules.cost import SQUARED_ERROR, Cost
from ..rules.nudging import random_signs
from .progress import Averages, Progress

if TYPE_CHECKING:
    from ..data.transforms import BatchTransform
    from ..relaxation.model import EnergyModel
    from .average import WeightAverage

__all__ = ["add_metrics", "evaluate", "train_epoch"]


def nothing(*_: object) -> None:
    """Do nothing."""


def train_epoch(
    accelerator: Accelerator,
    task: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    transform: BatchTransform,
    progress: Progress,
    *,
    seed: int = 0,
    warm_start: bool = False,
    skip_bad_batches: bool = False,
    clip_grad: float | None = None,
    cost: Cost = SQUARED_ERROR,
    average: WeightAverage | None = None,
    watch: Callable[[dict[str, Tensor]], None] = nothing,
    between: Callable[[], None] = nothing,
    title: str = "",
) -> dict[str, float]:
    """One pass over the training split, or what is left of it.

    Args:
        accelerator: Runs the step: devices, precision, gradient accumulation.
        task: A prepared `timm_ebl.training.task.RuleTask`.
        loader: A loader from `timm_ebl.data.loader.build_train_loader`.
        optimizer: A prepared optimiser.
        transform: Augmentation and normalisation.
        progress: The epoch to train and the batches of it that are done; kept up to date.
        seed: Seed of the augmentation, and of the signs of a rule that draws them.
        warm_start: Start every free phase but the epoch's first from the state that the second phase of the batch
            before left, as the paper's released code does.
        skip_bad_batches: Leave out a step whose gradient is not finite, in the metrics too. It costs a look at every
            gradient, but where a gradient scaler looks.
        clip_grad: Largest norm of a step's gradient over all parameters; one that is longer is scaled down to it.
        cost: The cost that is reported: the one that the rule descends.
        average: Takes in the weights after every step of the optimiser that was not left out.
        watch: Sees the task's result after every batch.
        between: Called after every batch, once progress includes it.
        title: What the progress bar shows.

    Returns:
        Means over the images of ``error`` (%), ``cost``, ``energy`` and ``residual``.

    Raises:
        Diverged: Every batch was left out.
    """
    task.train()
    loader.set_epoch(progress.epoch)
    generator = epoch_generator(seed, progress.epoch, Stream.AUGMENTATION)
    draws = transform.draw(len(loader.dataset), generator).to(accelerator.device)
    signs = None
    if accelerator.unwrap_model(task).rule.draws:  # of every row, whichever process has it
        generator = epoch_generator(seed, progress.epoch, Stream.SIGNS)
        signs = random_signs(len(loader.dataset), generator).to(accelerator.device)
    rest = skip_first_batches(loader, progress.step) if progress.step else loader
    rest.set_epoch(progress.epoch)  # accelerate before 1.15 does not pass it on
    batches, found = 0, Averages()
    hidden = None if accelerator.is_local_main_process else True
    with tqdm(rest, title, len(loader), leave=False, disable=hidden, initial=progress.step) as bar:
        for images, labels, rows in bar:
            x = transform.train(images, draws[:, rows])
            with accelerator.accumulate(task):
                result = task(x, labels, progress.state, *(() if signs is None else (signs[rows],)))
                accelerator.backward(result["loss"])
                good = not (skip_bad_batches and accelerator.sync_gradients) or has_finite_gradients(task, accelerator)
                if clip_grad and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(task.parameters(), clip_grad)
                if good:
                    optimizer.step()
                stepped = good and accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped
                if average is not None and stepped:
                    average.update(accelerator.unwrap_model(task).trainable_module)
                optimizer.zero_grad()
            progress.step += 1
            batches += 1
            add_metrics(found, result, labels, cost)
            left_out = skip_bad_batches and accelerator.sync_gradients and not stepped
            progress.state = result["last"] if warm_start and not left_out else None
            if left_out:
                progress.skipped += batches
            elif accelerator.sync_gradients:
                progress.averages.include(found)
            if accelerator.sync_gradients:
                batches, found = 0, Averages()
            if progress.step % 10 == 1 and progress.averages.images and not bar.disable:
                bar.set_postfix_str(f"error {progress.averages.means()['error']:.1f} %", refresh=False)
            watch(result)
            between()
    if not progress.averages.images:
        raise Diverged(f"no batch of epoch {progress.epoch} has a finite gradient")
    return progress.averages.reduced(accelerator)


def add_metrics(averages: Averages, result: dict[str, Tensor], labels: Tensor, cost: Cost) -> None:
    """Add what a `RuleTask` reports of a batch: ``error``, ``cost``, ``energy`` and ``residual``."""
    output = result["output"]
    averages.add(
        error=_wrong(output, labels),
        cost=_cost(cost, output, labels),
        energy=result["energy"],
        residual=result["residual"],
    )


def has_finite_gradients(task: nn.Module, accelerator: Accelerator) -> bool:
    """Whether every gradient is finite; always so under a gradient scaler, which looks for itself."""
    if accelerator.scaler is not None:
        return True
    return bool(torch.stack([p.grad.isfinite().all() for p in task.parameters() if p.grad is not None]).all())


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    model: EnergyModel,
    loader: DataLoader,
    transform: BatchTransform,
    between: Callable[[], None] = nothing,
    cost: Cost = SQUARED_ERROR,
) -> dict[str, Any]:
    """Error (%) and cost of the model's own relaxation over a split; every image counts once.

    ``predicted`` are the classes ``(N,)`` that it takes the images for, in the split's own order.

    Args:
        accelerator: Gathers the results of all processes.
        model: The model, not wrapped.
        loader: A prepared loader.
        transform: Normalisation.
        between: Called after every batch.
        cost: The cost that is reported.
    """
    model.eval()
    averages, predicted = Averages(), []
    for images, labels in loader:
        with accelerator.autocast():
            output = model.answer(transform.eval(images)).float()
        found = (_wrong(output, labels), _cost(cost, output, labels), output.argmax(1))
        error, paid, classes = accelerator.gather_for_metrics(found)
        averages.add(error=error, cost=paid)
        predicted.append(classes)
        between()
    return averages.means() | {"predicted": torch.cat(predicted).cpu()}


def _wrong(output: Tensor, labels: Tensor) -> Tensor:
    return (output.argmax(1) != labels).double() * 100


def _cost(cost: Cost, output: Tensor, labels: Tensor) -> Tensor:
    return cost.value(output, nn.functional.one_hot(labels, output.shape[1]))
