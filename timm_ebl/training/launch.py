"""What a run computes on, and whether that is what its launcher was asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list

from ..errors import ConfigError, EBLError

if TYPE_CHECKING:
    from .config import TrainConfig

__all__ = ["check_launch", "on_main", "start_accelerator"]

_Outcome = TypeVar("_Outcome")

_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where ``torchrun`` and the MPI launchers say how many processes they have started."""


def start_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a run; what the configuration leaves open is as the launcher was asked.

    Raises:
        ConfigError: accelerate cannot do what was asked for, or would do something else without a word.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.grad_accum_steps,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"accelerate cannot do what it was asked for: {error}") from error
    check_launch(accelerator)
    return accelerator


def check_launch(accelerator: Accelerator) -> None:
    """Compare what was asked for with what runs.

    Raises:
        ConfigError: Several processes were asked for and each runs alone, or 16 bits that the device does not compute.
    """
    if accelerator.num_processes == 1:
        told = os.environ.keys()
        started = max(int(os.environ.get(name) or 1) for name in _WORLD_SIZES)
        # Without several GPUs, accelerate starts a single process, and leaves this behind where more were asked for.
        asked = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= told and told.isdisjoint(_WORLD_SIZES)
        if started > 1 or asked:
            what = f"{started} processes were started, and each runs alone" if started > 1 else "a single one runs"
            raise ConfigError(
                f"Several processes were asked for, but {what}: on CPUs, start N of them by ACCELERATE_USE_CPU=1 "
                "torchrun --nproc_per_node N train_ebl.py .., or ask for one (--num_processes 1, without MASTER_ADDR)."
            )
    precision, device = accelerator.mixed_precision, accelerator.device.type
    if precision != "no" and not accelerator.native_amp:
        raise ConfigError(f"Nothing is computed in {precision} on a {device}: take --mixed-precision bf16, or no.")


def on_main(accelerator: Accelerator, call: Callable[[], _Outcome]) -> _Outcome:
    """Call something on the main process; every process gets what it returns, or the `EBLError` that it raises."""
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [call()]
        except EBLError as error:
            outcome = [error]
    (result,) = broadcast_object_list(outcome)
    if isinstance(result, EBLError):
        raise result
    return result
