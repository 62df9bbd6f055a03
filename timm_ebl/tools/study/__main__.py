"""A comparison of rules: the runs of a recipe and the table that they make.

    python -m timm_ebl.tools.study hub_configs/study_smoke.yaml --output-dir runs/smoke

Each cell of the recipe's grids is a run of train_ebl.py in DIR/runs. The same command goes on where it was interrupted.
The table is DIR/table.md, .csv, .json and .png.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...arguments import Parser, positive_count
from ...data.loader import require_step
from ...errors import ConfigError, DataError, DataWarning, EBLError, one_sentence
from ...training.build import check_config
from ...training.console import begin, survive_output
from ...training.options import flag_of
from ...training.splits import load_splits
from . import process
from .cluster import check_cluster, submit
from .folder import Status, StudyFolder
from .grid import Cell, read_study
from .machine import check_jobs, run_here
from .render import write_table
from .table import OF_THE_DATA, build_table

__all__ = ["build_parser", "check_cells", "main"]

_ALONE = {"table": ("jobs", "cluster", "retry", "dry_run"), "cluster": ("jobs",)}
"""Options that make others meaningless."""


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(prog="python -m timm_ebl.tools.study", description=__doc__)
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="YAML file of the study")
    parser.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder for runs and table")
    parser.add_argument("--jobs", type=positive_count, metavar="N", help="cells at once (default: 1)")
    parser.add_argument("--data-root", metavar="FOLDER", help="copies of Hub data sets, instead of the Hub")
    parser.add_argument("--cluster", action="store_true", help="submit the cells as jobs, by submitit")
    parser.add_argument("--retry", action="store_true", help="run cells again that failed")
    parser.add_argument("--table", action="store_true", help="make the table of what is there, and run nothing")
    parser.add_argument("--dry-run", action="store_true", help="check the recipe, list its cells, and run nothing")
    return parser


def check_cells(cells: Sequence[Cell]) -> None:
    """Refuse a study if one of its cells cannot be run, has no data, or fewer images than a step takes.

    Raises:
        ConfigError: A model, a rule or an optimiser cannot be built, or the data are not there or too few.
    """
    seen, images = set(), {}
    for cell in cells:
        config = replace(cell.config, seed=0)
        if repr(config) in seen:
            continue
        seen.add(repr(config))
        where = tuple(getattr(config, name) for name in OF_THE_DATA)
        try:
            check_config(config)
            if where not in images:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DataWarning)  # the run of the cell says them
                    images[where] = len(load_splits(config).train)
            require_step(config.batch_size * config.grad_accum_steps, images[where])
        except (ConfigError, DataError) as error:
            raise ConfigError(f"The cell {cell.name}: {error}") from None


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run a study, or make its table, from the command line."""
    options = begin(build_parser(), arguments)
    for one, others in _ALONE.items():
        for other in others:
            if getattr(options, one) and getattr(options, other):
                raise ConfigError(f"{flag_of(one)} has no use for {flag_of(other)}: leave one of them out.")
    jobs = options.jobs or 1
    study = read_study(options.recipe, options.data_root)
    folder = StudyFolder(options.output_dir)
    folder.check(study.cells, aside=("data_root",) if options.table else ())
    if not options.table:
        wanted = {Status.UNFINISHED, *([Status.FAILED] if options.retry else [])}
        waiting = [cell for cell in study.cells if folder.outcome(cell).status in wanted]
        if options.cluster:
            check_cluster(study.cluster)
        else:
            check_jobs(waiting, jobs)
        check_cells(waiting)
        if options.dry_run:
            print("\n".join(f"{cell.name}: {folder.outcome(cell).status}" for cell in study.cells))
            return
        folder.create()
        if options.retry:
            for cell in waiting:
                process.take_up(folder, cell)
        if options.cluster:
            submit(folder, study.cells, study.name, study.cluster, _say)
            return
        run_here(folder, study.cells, jobs, _say)
    elif not options.output_dir.is_dir():
        raise ConfigError(f"There is no folder {options.output_dir}: --output-dir is that of a study.")
    table = build_table(study, folder)
    print("\n".join(map(str, write_table(table, folder.path))))
    left = [cell.name for cell, outcome in table.cells if outcome.status is Status.UNFINISHED]
    failed = [cell.name for cell, outcome in table.cells if outcome.status is Status.FAILED]
    if left and not options.table:
        raise EBLError(f"{len(left)} cells were stopped before their end: the same command goes on with them.")
    if failed and not options.table:
        raise EBLError(f"{len(failed)} cells failed, and the table says why: --retry runs them again.")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    survive_output()
    main()
