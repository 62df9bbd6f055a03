"""A study: every cell once, the same end however it is interrupted, and failures that are results."""

import json
import os
import re
import signal
import threading
import time
from itertools import product

import pytest
from runs import write_images
from studies import complete, stand_in, study_of, write_recipe

from timm_ebl.data.paper import TABLE_1
from timm_ebl.errors import ConfigError, Interrupted
from timm_ebl.tools.study import __main__ as command
from timm_ebl.tools.study import process
from timm_ebl.tools.study.counts import Counts
from timm_ebl.tools.study.folder import Status
from timm_ebl.tools.study.grid import read_study
from timm_ebl.tools.study.machine import check_jobs, run_here
from timm_ebl.training.config import read_recipe, resolve
from timm_ebl.training.trained import RECIPES

RULES = ["c-ep", "n-ep", "p-ep"]
SEEDS = [{"algo": ["c-ep"], "seed": [0, 1, 2, 3]}]

# --------------------------------------------------------------------------------------------------------------- grids


def test_every_combination_is_a_cell_once_seed_after_seed_and_no_two_folders_are_alike(tmp_path):
    data = [{"dataset": "mnist", "model": "dchn_mnist"}, {"dataset": "cifar10", "model": "dchn_cifar10"}]
    grid = {"algo": RULES, "data": data, "beta": [0.1, 0.5], "seed": [0, 1]}
    study, folder = study_of(tmp_path, settings={"epochs": 3}, grids=[grid, {"algo": ["tbp"], "seed": [7]}])
    found = [(c.config.algo, c.config.dataset, c.config.model, c.config.beta, c.config.seed) for c in study.cells]
    names = [(each["dataset"], each["model"]) for each in data]
    expected = [(r, *n, b, s) for s, r, n, b in product([0, 1], RULES, names, [0.1, 0.5])]
    assert found == [*expected, ("tbp", None, None, None, 7)]
    assert len({str(folder.run(cell)).casefold() for cell in study.cells}) == len(study.cells)
    assert all(cell.config.epochs == 3 for cell in study.cells)


def test_folders_of_values_that_are_written_alike_differ(tmp_path):
    study, _ = study_of(tmp_path, grids=[{"algo": ["c-ep"], "dataset": ["a/b", "a b", "A b"]}])
    assert len({cell.name.casefold() for cell in study.cells}) == 3
    long = [{"lr": [[0.1 + i / 1e5] * 40 for i in range(2)]}]
    assert len({cell.name for cell in study_of(tmp_path, grids=long)[0].cells}) == 2
    assert max(len(cell.name) for cell in study_of(tmp_path, grids=long)[0].cells) < 200


def test_a_row_is_named_by_what_differs_from_the_common_settings(tmp_path):
    grids = [
        {"algo": ["p-ep", "cl"], "free_sweeps": [15, 60]},
        {"algo": ["p-ep"], "settle": [True]},
        {"algo": ["p-ep"], "model_kwargs": [{"gains": 0.7}]},
    ]
    study, _ = study_of(tmp_path, settings={"preset": "paper"}, grids=grids)
    rows = ["p-ep, free_sweeps 15", "p-ep", "cl, free_sweeps 15", "cl", "p-ep, settle true"]
    assert [cell.row for cell in study.cells] == [*rows, "p-ep, model_kwargs gains=0.7"]


def test_the_numbers_of_a_cell_do_not_depend_on_how_many_run_at_once(tmp_path):
    study, folder = study_of(tmp_path, grids=SEEDS)
    assert {(cell.config.threads, cell.config.mixed_precision) for cell in study.cells} == {(1, "no")}
    with pytest.raises(ConfigError, match=r"^--jobs 9999 with 1 thread a cell need 9999 cores"):
        check_jobs(study.cells, 9999)
    folder.write_recipe(study.cells[1])
    assert resolve(read_recipe(folder.recipe(study.cells[1]))).decisive() == study.cells[1].config.decisive()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "has no 'grids'"),
        ({"grids": []}, "has no 'grids'"),
        ({"grids": [{"seed": [0]}], "grid": 1}, "unknown part 'grid'"),
        ({"grids": [{}]}, "grids is a list of mappings"),
        ({"grids": [{"seed": []}]}, "grid 1: seed is a list of values with at least one"),
        ({"grids": [{"seed": 3}]}, "grid 1: seed is a list of values"),
        ({"grids": [{"seeds": [3]}]}, "seeds is no option of train_ebl.py"),
        ({"grids": [{"data": [{"datset": "mnist"}]}]}, "unknown option 'datset'"),
        ({"grids": [{"algo": ["d-ep"]}]}, "the cell algo d-ep: .*c-ep"),
        ({"grids": [{"seed": ["one"]}]}, "grid 1: seed: seed is a whole number"),
        ({"grids": [{"seed": [0, 0]}]}, "the cell seed 0 is there twice"),
        ({"grids": [{"seed": [0]}, {"algo": ["c-ep"], "seed": [1, 0]}]}, "the cell algo c-ep, seed 0 is there twice"),
        ({"grids": [{"data": [{"seed": 1}], "seed": [0]}]}, "seed is set by two axes"),
        ({"grids": [{"algo": ["tbp"], "beta": [0.1]}]}, "the cell algo tbp, beta 0.1: Rule 'tbp' has no use"),
        ({"grids": [{"seed": [0]}], "settings": {"resume": True}}, "resume is decided by the study"),
        ({"grids": [{"seed": [0]}], "settings": [1]}, "settings is a mapping"),
    ],
)
def test_bad_recipes_are_refused_in_one_sentence(tmp_path, parts, words):
    with pytest.raises(ConfigError, match=words) as error:
        read_study(write_recipe(tmp_path / "recipe.yaml", **parts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "mnist", "data_root": "nowhere"}, "The cell c-ep_mnist_seed=0: .*nowhere"),
        ({"model": "dchn_huge"}, "The cell c-ep_fashion-mnist-sample_seed=0: .*dchn_huge"),
    ],
)
def test_what_no_cell_can_run_on_is_refused_before_anything_runs(tmp_path, capsys, settings, words):
    recipe = write_recipe(tmp_path / "recipe.yaml", settings=settings, grids=[{"seed": [0]}])
    with pytest.raises(SystemExit, match="1"):
        command.main([str(recipe), "--output-dir", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------- recipes shipped


def test_the_study_of_table_1_has_the_papers_135_runs_with_the_settings_of_its_recipes():
    study = read_study(RECIPES / "study_table1.yaml")
    found = {(cell.config.algo, cell.config.dataset, cell.config.seed) for cell in study.cells}
    assert found == set(product(TABLE_1, TABLE_1["c-ep"], (0, 1, 2)))
    assert len(study.cells) == 135
    for cell in study.cells:
        recipe = resolve(
            read_recipe(RECIPES / f"table1_{cell.dataset.replace('-', '_')}.yaml"), {"algo": cell.config.algo}
        )
        same = cell.config.decisive() | {"seed": 0, "threads": None, "mixed_precision": None, "img_size": None}
        assert same == recipe.decisive()
    assert {cell.row for cell in study.cells} == set(TABLE_1)


def test_the_small_studies_have_the_cells_that_they_say():
    small = read_study(RECIPES / "study_table1_small.yaml", "anywhere")
    assert len(small.cells) == 9 * 4 * 3
    assert {cell.config.data_root for cell in small.cells} == {"anywhere"}
    assert all(cell.config.model == f"dchn_tiny_{cell.dataset.replace('-', '_')}" for cell in small.cells)
    positive = read_study(RECIPES / "study_positive_rules.yaml")
    assert len(positive.cells) == 201
    assert {cell.config.seed for cell in positive.cells} == {0, 1, 2}
    assert len({cell.row for cell in positive.cells}) == 67


# ------------------------------------------------------------------------------------------------------------- running


@pytest.fixture
def said():
    return []


def test_cells_that_fail_or_diverge_are_results_and_the_others_run(tmp_path, monkeypatch, said):
    monkeypatch.setattr(process, "SCRIPT", stand_in(tmp_path / "run.py", "completes", "diverges", "fails", "crashes"))
    study, folder = study_of(tmp_path, grids=SEEDS)
    run_here(folder, study.cells, 2, said.append)
    outcomes = [folder.outcome(cell) for cell in study.cells]
    assert [outcome.status for outcome in outcomes] == ["completed", "diverged", "failed", "failed"]
    assert outcomes[1].reason == "not finite"
    assert outcomes[2].reason == "error: it cannot be done."
    assert outcomes[3].reason == "run.py ended by SIGABRT and without a word"
    assert said[-1].endswith("1 of 4 cells done, 0 running, 1 diverged, 2 failed")
    assert any("seed=0: test error 10.00 %" in line for line in said)
    run_here(folder, study.cells, 2, said.append)
    assert [(folder.run(cell) / "starts").read_text() for cell in study.cells] == ["x"] * 4
    process.take_up(folder, study.cells[2])
    run_here(folder, study.cells, 1, said.append)
    assert [(folder.run(cell) / "starts").read_text() for cell in study.cells] == ["x", "x", "xx", "x"]


def test_two_cells_run_at_once_and_ctrl_c_ends_both_and_the_same_command_goes_on(tmp_path, monkeypatch, said):
    monkeypatch.setattr(process, "SCRIPT", stand_in(tmp_path / "run.py", "completes", "waits", "waits"))
    study, folder = study_of(tmp_path, grids=[{"seed": [0, 1, 2, 5]}])
    waiting = [folder.run(cell) / "starts" for cell in study.cells[1:3]]

    def interrupt():
        while not all(path.exists() for path in waiting):
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted, match=r"stopped by SIGINT; .* go on by the same command") as stop:
        run_here(folder, study.cells, 2, said.append)
    assert stop.value.status == 130
    statuses = [folder.outcome(cell).status for cell in study.cells]
    assert statuses == ["completed", "unfinished", "unfinished", "unfinished"]
    assert not (folder.run(study.cells[3])).exists()
    for cell in study.cells[1:]:
        folder.run(cell).mkdir(exist_ok=True)
        (folder.run(cell) / "go").touch()
    run_here(folder, study.cells, 2, said.append)
    assert {folder.outcome(cell).status for cell in study.cells} == {"completed"}
    assert [(folder.run(cell) / "starts").read_text() for cell in study.cells] == ["x", "xx", "xx", "x"]


def test_what_a_killed_study_left_running_is_waited_for_and_not_run_twice(tmp_path, monkeypatch, said):
    monkeypatch.setattr(process, "SCRIPT", stand_in(tmp_path / "run.py", "waits"))
    study, folder = study_of(tmp_path, grids=[{"seed": [0]}])
    (cell,) = study.cells
    claim = folder.claim(cell)
    orphan = process.start(folder, cell, claim)
    os.close(claim)  # as when the study is killed: the process alone has it
    assert folder.claim(cell) is None
    threading.Timer(1.0, (folder.run(cell) / "go").touch).start()
    run_here(folder, study.cells, 1, said.append)
    assert orphan.wait() == 0
    assert (folder.run(cell) / "starts").read_text() == "x"
    assert folder.outcome(cell).status == "completed"


def test_a_run_that_is_killed_is_not_a_failure(tmp_path):
    study, folder = study_of(tmp_path, grids=[{"seed": [0]}])
    (cell,) = study.cells
    folder.log(cell).touch()
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        for returned in (-number, 128 + number):
            assert process.finish(folder, cell, returned) is Status.UNFINISHED
    assert not folder.failure(cell).exists()
    assert process.finish(folder, cell, 0) is Status.FAILED  # it said that it was done, and left no result


def test_a_run_under_other_settings_is_not_taken_for_the_cell(tmp_path):
    study, folder = study_of(tmp_path, grids=[{"seed": [0]}])
    (cell,) = study.cells
    folder.run(cell).mkdir()
    settings = folder.run(cell) / "args.yaml"
    settings.write_text(folder.write_recipe(cell).read_text())
    folder.check(study.cells)
    settings.write_text(settings.read_text().replace("epochs: 8", "epochs: 9"))
    with pytest.raises(ConfigError, match=r"with epochs 9, and the recipe says 8"):
        folder.check(study.cells)


def test_the_time_left_is_that_of_cells_alike(tmp_path):
    study, folder = study_of(tmp_path, grids=[{"algo": ["c-ep", "n-ep"], "seed": [0, 1]}])
    assert Counts(folder, study.cells, 1).seconds_left() is None
    complete(folder, study.cells[0], [0, 1])
    assert Counts(folder, study.cells, 1).seconds_left() == 300
    assert Counts(folder, study.cells, 2).seconds_left() == 150
    assert (
        Counts(folder, study.cells, 2).line(1)
        == "1 of 4 cells done, 1 running, 0 diverged, 0 failed, at most 2 min left"
    )


@pytest.mark.slow
def test_the_command_trains_a_small_study_and_makes_its_table(tmp_path, capsys):
    images = write_images(tmp_path / "images")
    settings = {"dataset": str(images), "epochs": 2, "batch_size": 9}
    settings["model_kwargs"] = {"widths": [4, 4, 4, 4], "gains": 0.8}
    recipe = write_recipe(tmp_path / "small.yaml", settings=settings, grids=[{"algo": ["c-ep", "n-ep"]}])
    out = tmp_path / "study"
    jobs = min(2, len(os.sched_getaffinity(0)))
    command.main([str(recipe), "--output-dir", str(out), "--jobs", str(jobs)])
    assert "2 of 2 cells done, 0 running, 0 diverged, 0 failed" in capsys.readouterr().out
    found = json.loads((out / "table.json").read_text())
    assert [cell["status"] for cell in found["cells"]] == ["completed"] * 2
    (comparison,) = found["comparisons"]
    errors = [cell["test_error"] for cell in found["cells"]]
    assert comparison["difference"] == pytest.approx(errors[0] - errors[1])  # of the predictions, and of the summaries
    before = {path.name: path.read_bytes() for path in out.glob("table.*")}
    command.main([str(recipe), "--output-dir", str(out), "--table"])
    assert {path.name: path.read_bytes() for path in out.glob("table.*")} == before
