"""The table of a study: errors of every row on every data set, paired comparisons, agreement with the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import is_model_in_modules
from torch import Tensor

from ...data.paper import TABLE_1
from ...errors import CheckpointError
from ...training.records import read_metrics
from ...training.run_folder import PREDICTIONS
from .folder import Outcome, Status, StudyFolder
from .statistics import Interval, consistent_mcnemar, holm, interval_of_mean, kendall_tau, percentiles, resample

if TYPE_CHECKING:
    from .grid import Cell, Study

__all__ = ["OF_THE_DATA", "SIGNIFICANT", "Agreement", "Comparison", "Entry", "Table", "build_table"]

SIGNIFICANT = 0.05
"""Corrected p below which a difference counts as significant."""

_FEWEST_SEEDS = 3
"""Fewer say nothing of others."""

OF_THE_DATA = (
    *("seed", "holdout", "dataset", "dataset_config", "dataset_revision", "train_split", "test_split"),
    *("image_column", "label_column", "img_size", "channels"),
)
"""Settings that say which images a run has."""

_LAST = 101.0
"""An error above all that there are, of a rule that diverges."""


@dataclass(frozen=True)
class Entry:
    """A row on a data set.

    Attributes:
        row: Name of the row.
        algo: Its rule.
        setting: What else it differs in from the study's common settings.
        dataset: The data set.
        errors: Test error (%) of each completed cell, by seed.
        residuals: Residual of the free states in the last epoch of each completed cell, by seed.
        others: Status and reason of each other cell, by seed.
        paper: The mean error (%) of three runs in the paper's Table 1, if it has one.
    """

    row: str
    algo: str
    setting: str
    dataset: str
    errors: Mapping[int, float]
    residuals: Mapping[int, float]
    others: Mapping[int, tuple[str, str | None]]
    paper: float | None

    @property
    def mean(self) -> float | None:
        """Mean error over the completed seeds."""
        return fmean(self.errors.values()) if self.errors else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the error over the completed seeds (of a sample: by n - 1)."""
        return stdev(self.errors.values()) if len(self.errors) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Two rows that differ in one thing, on the test images of a data set, with the seeds that both have completed.

    Attributes:
        dataset: The data set.
        first: Name of the one row.
        second: Name of the other.
        option: What they differ in: ``algo`` or a setting.
        seeds: The seeds.
        complete: Whether these are all seeds that the study has for them.
        difference: Error of the first less that of the second, in percentage points, a mean over the seeds.
        interval: Its 95 % interval over seeds (`timm_ebl.tools.study.statistics.interval_of_mean`).
        p: `timm_ebl.tools.study.statistics.consistent_mcnemar`.
        corrected: The same after Holm's correction for all comparisons of the table.
    """

    dataset: str
    first: str
    second: str
    option: str
    seeds: tuple[int, ...]
    complete: bool
    difference: float
    interval: Interval | None
    p: float
    corrected: float

    @property
    def significant(self) -> bool:
        """Whether test images and seeds both speak for a difference, of all seeds and at least three."""
        enough = self.complete and len(self.seeds) >= _FEWEST_SEEDS
        return enough and self.corrected < SIGNIFICANT and not self.interval.low <= 0 <= self.interval.high


@dataclass(frozen=True)
class Agreement:
    """How far the order of the rules on a data set is that of the paper's Table 1.

    Attributes:
        dataset: The data set.
        rules: The rules that are compared: those with an error for these seeds, and last those of which a run diverged.
        seeds: The seeds that all rules without a diverged run have completed.
        tau: Kendall's tau-b.
        interval: Its 95 % interval by a bootstrap over seeds and images.
    """

    dataset: str
    rules: tuple[str, ...]
    seeds: tuple[int, ...]
    tau: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Table:
    """What a study has found.

    Attributes:
        name: Name of the recipe.
        settings: What its cells have in common.
        models: The models of the completed runs on each data set.
        test_images: How many test images each data set with a completed run has.
        cells: The cells and what is known of them.
        rows: Names of the rows.
        datasets: The data sets.
        entries: The entries, by row and data set.
        comparisons: The comparisons.
        agreements: The agreements.
    """

    name: str
    settings: Mapping[str, Any]
    models: Mapping[str, tuple[str, ...]]
    test_images: Mapping[str, int]
    cells: tuple[tuple[Cell, Outcome], ...]
    rows: tuple[str, ...]
    datasets: tuple[str, ...]
    entries: Mapping[tuple[str, str], Entry]
    comparisons: tuple[Comparison, ...]
    agreements: tuple[Agreement, ...]


def build_table(study: Study, folder: StudyFolder) -> Table:
    """The table of what is there, wherever the data were.

    Raises:
        CheckpointError: The files of a run cannot be read, or two runs on a data set have other images.
    """
    cells = tuple((cell, folder.outcome(cell, aside=("data_root",))) for cell in study.cells)
    rows, datasets = (tuple(dict.fromkeys(key(cell) for cell, _ in cells)) for key in (_row, _dataset))
    entries, comparisons, agreements, models, test_images = {}, [], [], {}, {}
    for dataset in datasets:
        here = [(cell, outcome) for cell, outcome in cells if cell.dataset == dataset]
        found = {row: _entry(folder, [each for each in here if each[0].row == row]) for row in rows}
        entries |= {(row, dataset): entry for row, entry in found.items() if entry}
        done = [(cell, outcome) for cell, outcome in here if outcome.status is Status.COMPLETED]
        models[dataset] = tuple(dict.fromkeys(outcome.summary["model"] for _, outcome in done))
        if done:
            test_images[dataset] = done[0][1].summary["test_images"]
        _require_same_data(folder, done)
        wrong = _read_wrong(folder, [cell for cell, _ in done])
        comparisons += _compare([cell for cell, _ in here], wrong)
        agreements += _agree(dataset, [entry for entry in found.values() if entry], wrong)
    corrected = holm([comparison.p for comparison in comparisons])
    comparisons = tuple(replace(each, corrected=p) for each, p in zip(comparisons, corrected, strict=True))
    return Table(
        study.name, study.settings, models, test_images, cells, rows, datasets, entries, comparisons, tuple(agreements)
    )


def _row(cell: Cell) -> str:
    return cell.row


def _dataset(cell: Cell) -> str:
    return cell.dataset


def _entry(folder: StudyFolder, cells: Sequence[tuple[Cell, Outcome]]) -> Entry | None:
    if not cells:
        return None
    first = cells[0][0]
    done = {cell.config.seed: (cell, out) for cell, out in cells if out.status is Status.COMPLETED}
    return Entry(
        first.row,
        first.config.algo,
        first.setting,
        first.dataset,
        {seed: outcome.summary["test_error"] for seed, (_, outcome) in done.items()},
        {seed: read_metrics(folder.run(cell) / "metrics.jsonl")[-1]["residual"] for seed, (cell, _) in done.items()},
        {cell.config.seed: (str(out.status), out.reason) for cell, out in cells if cell.config.seed not in done},
        None if first.variant or not _is_dchn(first) else TABLE_1.get(first.config.algo, {}).get(first.dataset),
    )


def _is_dchn(cell: Cell) -> bool:
    """Whether its network is one of the paper's kind."""
    return is_model_in_modules((cell.config.model or "dchn_tiny_fashion_mnist").partition(".")[0], ["dchn"])


def _require_same_data(folder: StudyFolder, cells: Sequence[tuple[Cell, Outcome]]) -> None:
    """Refuse runs that asked for the same images and got others, since a folder or the Hub has changed between them."""
    first: dict[tuple, tuple[Cell, str]] = {}
    for cell, outcome in cells:
        if data := outcome.summary.get("data"):  # runs of earlier versions do not have it
            asked = tuple(getattr(cell.config, name) for name in OF_THE_DATA)
            earlier, same = first.setdefault(asked, (cell, data))
            if data != same:
                one, other = folder.run(cell), folder.run(earlier)
                raise CheckpointError(f"{one} had other images than {other}: remove one, and run the study again.")


def _read_wrong(folder: StudyFolder, cells: Sequence[Cell]) -> dict[str, dict[int, Tensor]]:
    """Which test images are taken for another class, by row and seed; runs without predictions are left out."""
    wrong: dict[str, dict[int, Tensor]] = {}
    labels, whose = None, None
    for cell in cells:
        path = folder.run(cell) / PREDICTIONS
        if not path.is_file():
            continue
        try:
            found: dict[str, Any] = load_file(path)
            same = labels is None or torch.equal(labels, found["labels"])
            mistakes = found["predicted"] != found["labels"]
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}).") from None
        if not same:
            raise CheckpointError(f"{path} is of other test images than {whose}: their runs cannot be compared.")
        labels, whose = found["labels"], whose or path
        wrong.setdefault(cell.row, {})[cell.config.seed] = mistakes
    return wrong


def _compare(cells: Sequence[Cell], wrong: Mapping[str, Mapping[int, Tensor]]) -> list[Comparison]:
    """The comparisons of rows that differ in the rule or in one setting alone, not yet corrected."""
    asked = {row: {cell.config.seed for cell in cells if cell.row == row} for row in wrong}
    options = {cell.row: {"algo": cell.config.algo, **cell.variant} for cell in cells}
    found = []
    for first, second in combinations(wrong, 2):
        seeds = tuple(sorted(wrong[first].keys() & wrong[second].keys()))
        one, other = options[first], options[second]
        differing = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
        if not seeds or len(differing) != 1:
            continue
        a, b = (torch.stack([wrong[row][seed] for seed in seeds]) for row in (first, second))
        differences = ((a.double() - b.double()).mean(1) * 100).tolist()
        complete = {*seeds} == asked[first] | asked[second]
        summary = (fmean(differences), interval_of_mean(differences))
        p = consistent_mcnemar(a, b)
        found.append(Comparison(cells[0].dataset, first, second, *differing, seeds, complete, *summary, p, p))
    return found


def _agree(dataset: str, entries: Sequence[Entry], wrong: Mapping[str, Mapping[int, Tensor]]) -> list[Agreement]:
    """The agreement of the rules that the paper has too; none for fewer than three of them."""
    known = [entry for entry in entries if entry.paper is not None]
    last = [entry for entry in known if any(status == Status.DIVERGED for status, _ in entry.others.values())]
    ranked = [entry for entry in known if entry not in last and entry.row in wrong]
    seeds = sorted(set.intersection(*({*wrong[entry.row]} for entry in ranked))) if ranked else []
    if not seeds or len(ranked) + len(last) < 3:
        return []
    paper = torch.tensor([entry.paper for entry in (*ranked, *last)])
    mistakes = torch.stack([torch.stack([wrong[entry.row][seed] for seed in seeds]) for entry in ranked])

    def taus(errors: Tensor) -> Tensor:
        return kendall_tau(paper, torch.cat([errors, errors.new_full((*errors.shape[:-1], len(last)), _LAST)], -1))

    tau = float(taus(mistakes.double().mean((1, 2)) * 100))
    interval = percentiles(taus(resample(mistakes))) if len(seeds) > 1 else None
    rules = tuple(entry.algo for entry in (*ranked, *last))
    return [Agreement(dataset, rules, tuple(seeds), tau if tau == tau else None, interval)]
