"""The command line of a run.

    python -m timm_ebl.training.command_line > timm_ebl/training/options.txt

writes down the options of a run, which ``train_ebl.py --help`` shows without loading torch.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from ..arguments import Parser
from ..errors import ConfigError, one_sentence
from .config import TrainConfig, read_recipe, resolve
from .options import COMMAND_LINE, GROUPS, flag_of, read_setting
from .presets import PRESETS

__all__ = ["build_parser", "parse_config"]

NAMES_ELSEWHERE = {
    "--data-dir": "--dataset",
    "--data": "--dataset",
    "--data-path": "--dataset",
    "--data-format": "--dataset",
    "--val-split": "--test-split",
    "--num-classes": "the data decide it",
    "--input-size": "--img-size",
    "--in-chans": "--channels",
    "-b": "--batch-size",
    "--batch": "--batch-size",
    "--validation-batch-size": "--eval-batch-size",
    "-vb": "--eval-batch-size",
    "-j": "images are in memory, and no process loads them",
    "--workers": "images are in memory, and no process loads them",
    "--num-workers": "images are in memory, and no process loads them",
    "--checkpoint": "--pretrained",
    "--initial-checkpoint": "--pretrained",
    "--pretrained-path": "--pretrained",
    "--finetune": "--pretrained",
    "--rule": "--algo",
    "--optimizer": "--opt",
    "--optimiser": "--opt",
    "--learning-rate": "--lr",
    "--wd": "--weight-decay",
    "--sched": "rates follow a cosine: --lr, --min-lr, --warmup-epochs",
    "--warmup-lr": "rates rise from 0: --warmup-epochs",
    "--layer-decay": "a rate for each interaction goes to --lr, and --freeze keeps the lowest",
    "--amp": "--mixed-precision bf16",
    "--amp-dtype": "--mixed-precision",
    "--fp16": "--mixed-precision fp16",
    "--bf16": "--mixed-precision bf16",
    "--device": "accelerate chooses it; ACCELERATE_USE_CPU=1 is the CPU",
    "--torchcompile": "--compiled",
    "--output": "--output-dir",
    "--experiment": "--output-dir",
    "--checkpoint-hist": "--keep-checkpoints",
    "--log-interval": "--watch-every",
    "--log-wandb": "--log-with wandb",
    "--wandb": "--log-with wandb",
    "-e": "python -m timm_ebl.hub verify measures a checkpoint",
    "--evaluate": "python -m timm_ebl.hub verify measures a checkpoint",
} | dict.fromkeys(
    ("--aa", "--color-jitter", "--cutmix", "--drop", "--mixup", "--reprob", "--smoothing"),
    "timm's train.py has it, and trains by loss.backward() (timm_ebl/models/README.md, timm's own scripts)",
)
"""What timm's scripts and others call an option: its name here, or why there is none."""


def build_parser() -> Parser:
    """The parser of a run's command line; it leaves values as texts."""
    parser = Parser(NAMES_ELSEWHERE, usage="%(prog)s [options]")
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    groups["run"].add_argument(
        "--config", metavar="FILE", help="YAML recipe; what the command line says comes before it"
    )
    groups["rule"].add_argument(
        "--preset",
        choices=PRESETS,
        default=argparse.SUPPRESS,
        help="how states are found; fast: the defaults below, for a DCHN, unless --opt is another, Muon with a decay "
        "of 0.3 and a rate of 1e-3 (small: 3e-4; the paper's widths: 1.5e-4, and a decay of 0.6), for a "
        "Hopfield-ResNet13 15 free sweeps with an omega of 1.8 and a learning rate of 1e-3; paper: as published for "
        "the kind of network, asynchronous and without over-relaxation, 60 free sweeps and 15 of what follows for a "
        "DCHN, 120 and 50 for a Hopfield-ResNet13, a forward pass and 5 for a PCN-VGG5 (default: fast)",
    )
    for spec in dataclasses.fields(TrainConfig):
        parse, many = spec.metadata["parse"], spec.metadata["many"]
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": spec.metadata["help"] + _default(spec.default)}
        if parse is bool:
            options |= {"action": argparse.BooleanOptionalAction}
        else:
            options |= {"nargs": "+", "action": "extend" if spec.name == "imports" else "store"} if many else {}
            options |= {"metavar": {int: "N", float: "X", dict: "KEY=VALUE"}.get(parse, "NAME")}
        groups[spec.metadata["group"]].add_argument(flag_of(spec.name), dest=spec.name, **options)
    return parser


def parse_config(arguments: Sequence[str] | None = None) -> TrainConfig:
    """The configuration of a run: the command line, over a recipe (``--config``), over a preset, over the defaults.

    Args:
        arguments: The command line; by default that of the process.

    Raises:
        SystemExit: Something is wrong with the command line or the recipe; one sentence says what.
    """
    parser = build_parser()
    given = vars(parser.parse_args(arguments))
    recipe = given.pop("config")
    try:
        chosen = {
            spec.name: read_setting(spec, given[spec.name], COMMAND_LINE)
            for spec in dataclasses.fields(TrainConfig)
            if spec.name in given
        }
        chosen |= {name: given[name] for name in ("preset",) if name in given}
        return resolve({} if recipe is None else read_recipe(recipe), chosen)
    except ConfigError as error:
        parser.error(str(error))


def _default(value: Any) -> str:
    """A default in words, behind what `--help` says of an option."""
    if value is None or value is dataclasses.MISSING:
        return ""
    if isinstance(value, bool):
        return f" (default: {'yes' if value else 'no'})"
    if isinstance(value, tuple):
        first, *_, last = value[:1] + value
        return f" (default: {first:g}" + (f", later ones less, down to {last:g})" if last < first else ")")
    return f" (default: {value:g})" if isinstance(value, float) else f" (default: {value})"


if __name__ == "__main__":
    with one_sentence():
        print(build_parser().format_help().partition("\n\n")[2], end="")
