"""What a training step costs beside training: metrics, the watch and checkpoints.

    python -m timm_ebl.overhead --models dchn_tiny_fashion_mnist dchn_small_cifar10

Step, metrics, a look of the watch and a checkpoint are timed by turns in one process; of each the fastest turn counts.
A look is shared out to the batches between two, a checkpoint to those of ten minutes and of an epoch, as by default.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from .checkpoint import Checkpoints
from .command_line import Parser
from .config import TrainConfig
from .console import bars_in_terminals_alone
from .errors import one_sentence
from .gradients import create_network
from .loop import add_metrics, nothing
from .memory import keep_freed_memory
from .progress import Progress
from .rules import create_rule
from .signals import StopSignals
from .task import RuleTask
from .threads import add_threads_option, set_threads
from .timing import seconds
from .training import build_optimizer
from .values import positive_count
from .watch import Watch

__all__ = ["main", "measure"]


def measure(name: str, batch_size: int, repeats: int, epoch_images: int, folder: Path) -> dict[str, float]:
    """Seconds of a step, and of what comes beside it.

    Args:
        name: timm model.
        batch_size: Images in a step.
        repeats: Turns.
        epoch_images: Images of the epochs at whose ends checkpoints are saved.
        folder: Where the checkpoints are written.

    Returns:
        ``step``, ``metrics``, ``look`` and ``checkpoint`` in seconds, and ``overhead``, the rest as part of a step.
    """
    accelerator, config = Accelerator(), TrainConfig()
    model = create_network(name, accelerator.device)
    optimizer = build_optimizer(TrainConfig(lr=(1e-6,)), model)
    task = RuleTask(model, create_rule("c-ep"), device=accelerator.device, verbose=False)
    task, optimizer = accelerator.prepare(task, optimizer)
    x = torch.randn(batch_size, model.in_chans, *model.img_size, device=accelerator.device)
    labels = torch.arange(batch_size, device=accelerator.device) % model.num_classes
    result = task(x, labels)
    progress = Progress()
    watch = Watch(model, progress, 1, 0, nothing)
    with StopSignals() as signals:
        checkpoints = Checkpoints(folder, accelerator, model, optimizer, progress, signals, {}, config.keep_checkpoints)

        def step() -> None:
            accelerator.backward(task(x, labels)["loss"])
            optimizer.step()
            optimizer.zero_grad()

        def metrics() -> None:
            add_metrics(progress.averages, result, labels)
            checkpoints.between_batches()

        def save() -> None:
            progress.step += 1
            checkpoints.save()

        kinds = {"step": step, "metrics": metrics, "look": lambda: watch(result), "checkpoint": save}
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(repeats + 1):
            for kind, call in kinds.items():
                times[kind].append(seconds(call, accelerator.device))
    found = {kind: min(turns[1:]) for kind, turns in times.items()}
    saving = found["checkpoint"] * (found["step"] / (60 * config.checkpoint_minutes) + batch_size / epoch_images)
    overhead = found["metrics"] + found["look"] / config.watch_every + saving
    return found | {"overhead": overhead / found["step"]}


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the overhead of some models."""
    bars_in_terminals_alone()
    parser = Parser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["dchn_tiny_fashion_mnist"], help="timm names")
    parser.add_argument("--batch-size", type=positive_count, default=32, help="images in a step (default: 32)")
    parser.add_argument("--repeats", type=positive_count, default=20, help="turns (default: 20)")
    parser.add_argument("--epoch-images", type=positive_count, default=4500, help="images of an epoch (default: 4500)")
    add_threads_option(parser)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    if options.threads:
        set_threads(options.threads)
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, options.batch_size, options.repeats, options.epoch_images, Path(folder))
        overhead = found.pop("overhead")
        times = ", ".join(f"{kind} {1e3 * time:.2f} ms" for kind, time in found.items())
        print(f"{name}: {times}; overhead {overhead:.2%} of a step")


if __name__ == "__main__":
    main()
