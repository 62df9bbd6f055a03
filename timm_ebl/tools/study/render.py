"""The table of a study as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...training.files import write_whole
from .figure import plot_table
from .folder import Status
from .sheet import lay_out
from .table import SIGNIFICANT

if TYPE_CHECKING:
    from .table import Agreement, Comparison, Entry, Table

__all__ = ["to_csv", "to_json", "to_markdown", "write_table"]


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write ``table.md``, ``table.csv``, ``table.json`` and ``table.png`` into a folder; returns their paths."""
    texts: dict[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "json": to_json}
    for suffix, render in texts.items():
        text = render(table)
        write_whole(folder / f"table.{suffix}", lambda path, text=text: path.write_text(text, encoding="utf-8"))
    plot_table(table, folder / "table.png")
    return [folder / f"table.{suffix}" for suffix in (*texts, "png")]


def to_markdown(table: Table) -> str:
    """The table, what is missing in it, the comparisons and the agreements, in GitHub's Markdown."""
    status = Counter(str(outcome.status) for _, outcome in table.cells)
    counts = ", ".join(f"{status[each]} {each}" for each in Status if status[each])
    parts = [
        f"# {table.name}\n\n{len(table.cells)} cells: {counts}.",
        "Common settings: " + ", ".join(f"{name} {json.dumps(value)}" for name, value in table.settings.items()) + ".",
        _grid(
            ["data set", "model", "test images"],
            [[each, ", ".join(models), str(table.test_images.get(each, "-"))] for each, models in table.models.items()],
        ),
        "Test error in %: mean +- standard deviation over the seeds; in brackets the mean of three runs in the paper's "
        "Table 1, of networks of full width after 100 epochs; bold: the lowest mean of a data set among rows of which "
        "every seed is completed.",
    ]
    for sheet in lay_out(table):
        lines = [
            [line, *(_shown(table, sheet.entries.get((line, each))) for each in sheet.columns)] for line in sheet.lines
        ]
        parts += [f"## {sheet.title}"] * bool(sheet.title) + [_grid(["", *sheet.columns], lines)]
    missing = [
        [cell.name, str(outcome.status), outcome.reason or ""]
        for cell, outcome in table.cells
        if outcome.status in (Status.DIVERGED, Status.FAILED)
    ]
    if missing:
        parts += ["## Cells without an error", _grid(["cell", "", "reason"], missing)]
    if table.agreements:
        parts += [
            "## Agreement with the order of the rules in the paper's Table 1",
            "For the seeds that all these rules have completed; rules of which a run diverged are last. 95 %: by a "
            "bootstrap over seeds and test images, which takes the paper's figures as they are.",
            _grid(["", "rules", "seeds", "Kendall's tau", "95 %"], [_agreement(each) for each in table.agreements]),
        ]
    if table.comparisons:
        parts += [
            "## Pairs of rows that differ in one thing",
            "Difference of the test errors in percentage points, first less second, and its 95 % interval over seeds "
            "(Student's). p: the largest of the seeds' exact McNemar tests (1 where the seeds disagree), corrected by "
            f"Holm's method for all {len(table.comparisons)} pairs; it is about these networks and the images, not "
            "about other seeds. The interval is about other seeds, and is not corrected: of a hundred pairs without a "
            f"difference, five have one without 0. Bold: p below {SIGNIFICANT} and an interval without 0, with all "
            "seeds of the study, at least three.",
        ]
    for dataset, option in dict.fromkeys((each.dataset, each.option) for each in table.comparisons):
        pairs = [each for each in table.comparisons if (each.dataset, each.option) == (dataset, option)]
        bold = sum(pair.significant for pair in pairs)
        parts += [
            f"<details><summary>{dataset}, {option}: {len(pairs)} pairs, {bold} bold</summary>",
            _grid(
                ["first", "second", "seeds", "difference", "95 %", "p", "corrected"],
                [_comparison(pair) for pair in pairs],
            ),
            "</details>",
        ]
    return "\n\n".join(parts) + "\n"


def to_csv(table: Table) -> str:
    """A line for each row and data set."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = [
        "row",
        "algo",
        "setting",
        "dataset",
        "mean",
        "deviation",
        "completed",
        *(str(s) for s in _WITHOUT),
        "residual",
        "paper",
    ]
    writer.writerow(head)
    for entry in table.entries.values():
        others = Counter(status for status, _ in entry.others.values())
        residual = sum(entry.residuals.values()) / len(entry.residuals) if entry.residuals else None
        values = [entry.mean, entry.deviation, len(entry.errors), *(others[each] for each in _WITHOUT), residual]
        writer.writerow([entry.row, entry.algo, entry.setting, entry.dataset, *values, entry.paper])
    return out.getvalue()


_WITHOUT = (Status.DIVERGED, Status.FAILED, Status.UNFINISHED)


def to_json(table: Table) -> str:
    """All of the table."""
    found = {
        "name": table.name,
        "settings": table.settings,
        "datasets": [
            {"name": name, "models": models, "test_images": table.test_images.get(name)}
            for name, models in table.models.items()
        ],
        "cells": [
            {
                "name": cell.name,
                "row": cell.row,
                "dataset": cell.dataset,
                "seed": cell.config.seed,
                "status": str(outcome.status),
                "reason": outcome.reason,
                "test_error": outcome.summary.get("test_error"),
            }
            for cell, outcome in table.cells
        ],
        "entries": [
            asdict(entry) | {"mean": entry.mean, "deviation": entry.deviation} for entry in table.entries.values()
        ],
        "comparisons": [_plain(each) | {"significant": each.significant} for each in table.comparisons],
        "agreements": [_plain(each) for each in table.agreements],
    }
    return json.dumps(found, indent=2, allow_nan=False) + "\n"


def _plain(record: Comparison | Agreement) -> dict[str, Any]:
    return asdict(record) | {"interval": record.interval and list(record.interval)}


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _shown(table: Table, entry: Entry | None) -> str:
    """An entry in Markdown."""
    if entry is None:
        return ""
    text = "-" if entry.mean is None else f"{entry.mean:.2f}"
    if entry.deviation is not None:
        text += f" +- {entry.deviation:.2f}"
    if _is_best(table, entry):
        text = f"**{text}**"
    if entry.paper is not None:
        text += f" ({entry.paper:g})"
    for status, count in Counter(status for status, _ in entry.others.values()).items():
        text += f", {count} {status}"
    return text


def _is_best(table: Table, entry: Entry) -> bool:
    rivals = [each for each in table.entries.values() if each.dataset == entry.dataset and not each.others]
    return entry in rivals and entry.mean == min(each.mean for each in rivals)


def _comparison(each: Comparison) -> list[str]:
    interval = f"{each.interval.low:+.2f} to {each.interval.high:+.2f}" if each.interval else "-"
    corrected = f"{each.corrected:.2g}"
    return [
        each.first,
        each.second,
        " ".join(map(str, each.seeds)),
        f"{each.difference:+.2f}",
        interval,
        f"{each.p:.2g}",
        f"**{corrected}**" if each.significant else corrected,
    ]


def _agreement(each: Agreement) -> list[str]:
    interval = f"{each.interval.low:.2f} to {each.interval.high:.2f}" if each.interval else "-"
    seeds = " ".join(map(str, each.seeds))
    return [each.dataset, " ".join(each.rules), seeds, "-" if each.tau is None else f"{each.tau:.2f}", interval]
