"""Overview of `hub_configs`: how to run each recipe, what to expect, how long it may take; and what was trained here.

    python -m timm_ebl.hub.recipes

writes ``hub_configs/README.md`` from the recipes, the paper's figures and the checkpoints that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import timm
import torch

from ..errors import ConfigError, one_sentence
from ..models.weights import list_shipped
from ..relaxation.network import HopfieldNetwork
from ..rules.contrastive import ContrastiveRule
from ..tools.throughput import layer_products, sweep_flops
from ..training.build import build_rule
from ..training.command_line import Parser
from ..training.config import TrainConfig, read_recipe, resolve
from ..training.run_folder import write_whole
from ..training.trained import RECIPES, Checkpoint
from .paper import SPLIT_SIZES, TABLE_1, TABLE_2, TABLE_2_LONG, paper_error

__all__ = ["main", "render_overview", "run_flops", "step_flops", "write_overview"]

PAPER_SECONDS = (3 * 60 + 18) * 60
"""The paper's time for 100 epochs of Table 2, CIFAR-10, on one A100 in 16 bits (Section 4.2)."""

PLAIN_CONVOLUTIONS = 3 / 2
"""Convolutions of a plain simulation for one of ours: it computes each drive twice a sweep, for itself and for the
feedback that follows its pooling routes; the transposed convolution once, as we do."""


def step_flops(model: HopfieldNetwork, recipe: TrainConfig) -> int:
    """Floating-point operations of a training step for one image: sweeps, the input's drive, the contrast's gradient.

    Args:
        model: The model.
        recipe: Its recipe, of a contrastive rule.
    """
    rule = build_rule(recipe)
    if not isinstance(rule, ContrastiveRule):
        raise ValueError(f"The operations of {recipe.algo!r} are not counted: choose a rule that contrasts two states.")
    perturbed = 2 if recipe.algo.startswith("c-") else 1
    sweeps = rule.free.sweeps + perturbed * rule.second.sweeps
    sample = torch.empty(1, model.in_chans, *model.img_size)
    products = layer_products(model, sample)
    return sweeps * sweep_flops(model, sample) + 2 * products[0] + 2 * 2 * sum(products)


def run_flops(recipe: TrainConfig) -> float:
    """Floating-point operations of a run on a data set as published: training, and evaluation of the held-out part."""
    model = timm.create_model(recipe.model, **recipe.model_kwargs)
    images = SPLIT_SIZES[recipe.dataset][0] * recipe.epochs
    sample = torch.empty(1, model.in_chans, *model.img_size)
    evaluation = recipe.free_sweeps * sweep_flops(model, sample)
    return images * ((1 - recipe.holdout) * step_flops(model, recipe) + recipe.holdout * evaluation)


def paper_rate(recipe: TrainConfig) -> float:
    """Operations a second that the paper's time implies, given its recipe for Table 2, CIFAR-10."""
    model = timm.create_model(recipe.model, **recipe.model_kwargs)
    images = SPLIT_SIZES[recipe.dataset][0] * recipe.epochs
    return PLAIN_CONVOLUTIONS * images * step_flops(model, recipe) / PAPER_SECONDS


def render_overview(folder: Path = RECIPES) -> str:
    """The text of ``hub_configs/README.md``.

    Raises:
        CheckpointError: The record of a shipped checkpoint is missing or damaged.
        ConfigError: A recipe is missing or cannot be read.
    """
    recipes = {path.stem: resolve(read_recipe(path)) for path in sorted(folder.glob("table*.yaml"))}
    for dataset in TABLE_2_LONG:
        if f"table2_{dataset}" not in recipes:
            raise ConfigError(f"{folder} has no table2_{dataset}.yaml: the overview is written in a clone of timm_ebl.")
    rate = paper_rate(recipes["table2_cifar10"])
    rows = []
    for name, recipe in recipes.items():
        hours = run_flops(recipe) / rate / 3600
        expected = _expected(name, recipe)
        rows.append(
            f"| [`{name}`]({name}.yaml) | {expected} | {recipe.free_sweeps} + 2 x {recipe.nudged_sweeps} | "
            f"{run_flops(recipe):.1e} | {hours:.1f} h |"
        )
    return TEMPLATE.format(
        rows="\n".join(rows),
        rate=f"{rate / 1e12:.0f}",
        rules=_rule_table(),
        long=_long_rows(recipes, rate),
        checkpoints=_checkpoint_rows(),
    )


def _expected(name: str, recipe: TrainConfig) -> str:
    if name == "table1_svhn_gain_0.7":
        return "not given"
    return f"{TABLE_1[recipe.algo][recipe.dataset] if name.startswith('table1') else TABLE_2[recipe.dataset]} %"


def _rule_table() -> str:
    sets = list(SPLIT_SIZES)
    lines = ["| `--algo` | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    lines += [f"| `{rule}` | " + " | ".join(f"{row[name]:g}" for name in sets) + " |" for rule, row in TABLE_1.items()]
    return "\n".join(lines)


def _long_rows(recipes: dict[str, TrainConfig], rate: float) -> str:
    found = []
    for dataset, error in TABLE_2_LONG.items():
        recipe = replace(recipes[f"table2_{dataset}"], epochs=300)
        found.append(f"{error:g} % on {dataset} (estimate: {run_flops(recipe) / rate / 3600:.1f} h)")
    return " and ".join(found)


def _checkpoint_rows() -> str:
    rows = []
    for name in list_shipped():
        shipped = Checkpoint.open(name)
        paper = paper_error(shipped.summary["algo"], shipped.summary["dataset"])
        rows.append(
            f"| [`{name}`]({name}) | {shipped.evaluation.error:.2f} % | {shipped.evaluation.images:,} | "
            f"{shipped.summary['epochs']} | {'-' if paper is None else f'{paper:g} %'} |"
        )
    return "\n".join(rows)


def write_overview(folder: Path = RECIPES) -> Path:
    """Write ``README.md`` into the folder of the recipes."""
    path = folder / "README.md"
    text = render_overview(folder)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


TEMPLATE = """# Recipes and checkpoints

This page is written by `python -m timm_ebl.hub.recipes`.

## The paper's tables on a GPU

One A100-class GPU, bf16 (or `fp16`):

```bash
accelerate launch --num_processes 1 --mixed_precision bf16 train_ebl.py --config hub_configs/table2_cifar10.yaml
```

Four of them, with the same 128 images in a step:

```bash
accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 train_ebl.py \\
    --config hub_configs/table2_cifar10.yaml --batch-size 32
```

The same two commands run every recipe; put its name in place of `table2_cifar10`.

| recipe | test error in the paper | sweeps | operations | time on one A100 (estimate) |
|---|---|---|---|---|
{rows}

Times are estimates, not measurements: the operations of all sweeps, input drives, gradients and evaluations at the
{rate} TFLOP/s that the paper's 3 h 18 min for Table 2, CIFAR-10, imply, its plain simulation computing one and a half
times our convolutions. Several GPUs divide them at best by their number; small batches use a GPU less well.

With `--epochs 300` the paper reports {long}.
The recipes train on the whole training split, as the paper does, and keep the last epoch's weights. The released
scripts keep those of the lowest test error instead; `--holdout 0.1` selects an epoch without the test split.

`--algo NAME` runs another rule with the settings of Table 1. The paper's test errors (%), means of three runs
(`--seed 0`, `1`, `2`):

{rules}

## Checkpoints

Weights in the package, trained by this repository; each folder has the recipe, the metrics, the curves and the card.
`python -m timm_ebl.hub verify NAME` measures the error again.

| checkpoint | test error | test images | epochs | paper, its widths, 100 epochs |
|---|---|---|---|---|
{checkpoints}
"""


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the overview."""
    Parser(description=__doc__).parse_args(arguments)
    print(f"wrote {write_overview()}")


if __name__ == "__main__":
    main()
