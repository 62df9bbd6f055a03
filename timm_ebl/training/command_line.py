"""Command lines: what goes wrong is said in one line.

    python -m timm_ebl.training.command_line > timm_ebl/training/options.txt

writes down the options of a run, which ``train_ebl.py --help`` shows without loading torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ..errors import ConfigError
from .config import COMMAND_LINE, GROUPS, PRESETS, TrainConfig, flag_of, read_recipe, read_setting, resolve

__all__ = ["Parser", "build_parser", "parse_config"]

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
    ("--aa", "--color-jitter", "--cutmix", "--drop", "--mixup", "--model-ema", "--reprob", "--smoothing"),
    "timm's train.py has it, and trains these models by loss.backward() (README, With timm)",
)
"""What timm's scripts and others call an option: its name here, or why there is none."""


class Parser(argparse.ArgumentParser):
    """A parser that takes no shortened options, shows its description as it is, and ends in one line.

    An unknown option is answered by what is meant: of another script (``elsewhere``), else one of a similar name.

    Args:
        elsewhere: Answers to options of other scripts: an option and its value, or a reason.
        **kwargs: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, elsewhere: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        self.elsewhere = elsewhere or {}
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter} | kwargs)

    def error(self, message: str) -> NoReturn:
        """End the process with status 2; argparse itself would print the usage first.

        Raises:
            SystemExit: Always.
        """
        if message.startswith("unrecognized arguments"):
            message = self._answer(message)
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def _answer(self, message: str) -> str:
        """What may be said in place of an unknown option."""
        choices = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        commands = [each for several in choices for each in several.values() if isinstance(each, Parser)]
        known = sorted({name for parser in (self, *commands) for name in parser._option_string_actions})
        unknown = next((word.partition("=")[0] for word in message.split()[2:] if word.startswith("-")), "")
        short = unknown if unknown.startswith("--") else unknown[:2]  # -b64
        meant = self.elsewhere.get(unknown, self.elsewhere.get(short))
        if meant is None:
            meant = next(iter(difflib.get_close_matches(unknown, known, 1, 0.75)), None)
        if meant is None:
            return f"{message}; the options are {', '.join(known)}"
        return f"unknown option {unknown}: " + (f"did you mean {meant}?" if meant.startswith("-") else meant)


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
        help="how states are found; fast: the defaults below; paper: the procedure of the paper's comparative study, "
        "60 free sweeps and 15 of what follows, asynchronous, without over-relaxation (default: fast)",
    )
    for spec in dataclasses.fields(TrainConfig):
        parse, many = spec.metadata["parse"], spec.metadata["many"]
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": spec.metadata["help"] + _default(spec.default)}
        if parse is bool:
            options |= {"action": argparse.BooleanOptionalAction}
        else:
            options |= {"nargs": "+"} if many else {}
            options |= {"metavar": {int: "N", float: "X", dict: "KEY=VALUE"}.get(parse, "NAME")}
        groups[spec.metadata["group"]].add_argument(flag_of(spec.name), **options)
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
    print(build_parser().format_help().partition("\n\n")[2], end="")
