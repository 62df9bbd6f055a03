"""A study: every cell once, the same end however it is interrupted, and failures that are results."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from runs import assert_same_run, write_images
from studies import complete, stand_in, study_of, write_recipe

from timm_ebl.errors import ConfigError, Interrupted
from timm_ebl.tools.study import __main__ as command
from timm_ebl.tools.study import process
from timm_ebl.tools.study.counts import Counts
from timm_ebl.tools.study.folder import Status
from timm_ebl.tools.study.grid import read_study
from timm_ebl.tools.study.machine import run_here

SEEDS = [{"algo": ["c-ep"], "seed": [0, 1, 2, 3]}]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "mnist", "data_root": "nowhere"}, "The cell c-ep_mnist_seed=0: .*nowhere"),
        ({"model": "dchn_huge"}, "The cell c-ep_fashion-mnist-sample_seed=0: .*dchn_huge"),
        ({"batch_size": 5000}, "The cell c-ep_.*: A step takes 5000 images .*, and there are 4500"),
        ({"dataset": "FOLDER", "train_split": "nope"}, "The cell c-ep_images_.*: .*nope"),
    ],
)
def test_what_no_cell_can_run_on_is_refused_before_anything_runs(tmp_path, capsys, settings, words):
    if settings.get("dataset") == "FOLDER":
        settings = settings | {"dataset": str(write_images(tmp_path / "images"))}
    recipe = write_recipe(tmp_path / "recipe.yaml", settings=settings, grids=[{"seed": [0]}])
    with pytest.raises(SystemExit, match="1"):
        command.main([str(recipe), "--output-dir", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error)
    assert not (tmp_path / "out").exists()


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
    assert outcomes[3].reason == "run.py ended by SIGABRT"  # and not the last line of its log
    assert said[-1].endswith("1 of 4 cells done, 0 running, 1 diverged, 2 failed")
    assert any("seed=0: test error 10.00 %" in line for line in said)
    run_here(folder, study.cells, 2, said.append)
    assert [(folder.run(cell) / "starts").read_text() for cell in study.cells] == ["x"] * 4
    process.take_up(folder, study.cells[2])
    run_here(folder, study.cells, 1, said.append)
    assert [(folder.run(cell) / "starts").read_text() for cell in study.cells] == ["x", "x", "xx", "x"]


def test_a_cell_that_failed_under_other_settings_has_no_part_in_what_comes(tmp_path, monkeypatch, said):
    study, folder = study_of(tmp_path, grids=[{"seed": [0, 1]}])
    for cell in study.cells:
        folder.write_recipe(cell)
        folder.write_failure(cell, "of old")
    study, _ = study_of(tmp_path, settings={"epochs": 3}, grids=[{"seed": [0, 1]}])
    monkeypatch.setattr(process, "SCRIPT", stand_in(tmp_path / "run.py", "fails", "completes"))
    run_here(folder, study.cells, 1, said.append)
    assert folder.outcome(study.cells[0]).reason == "error: it cannot be done."
    assert not folder.failure(study.cells[1]).exists()


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


def test_a_ctrl_c_while_a_cell_is_started_leaves_no_run_behind(tmp_path, monkeypatch, said):
    monkeypatch.setattr(process, "SCRIPT", stand_in(tmp_path / "run.py", "waits"))
    study, folder = study_of(tmp_path, grids=[{"seed": [0]}])
    original, children = process.start, []

    def interrupted(*given):
        children.append(original(*given))
        os.kill(os.getpid(), signal.SIGINT)
        return children[0]

    monkeypatch.setattr(process, "start", interrupted)
    with pytest.raises(Interrupted, match="stopped by SIGINT"):
        run_here(folder, study.cells, 1, said.append)
    assert children[0].poll() is not None


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
    with pytest.raises(ConfigError, match=r"with --epochs 9, and 8 is asked for"):
        folder.check(study.cells)


def test_a_cell_that_failed_under_other_settings_is_run_again(tmp_path):
    (cell,) = study_of(tmp_path, settings={"epochs": 9}, grids=[{"seed": [0]}])[0].cells
    study, folder = study_of(tmp_path, grids=[{"seed": [0]}])
    folder.write_recipe(cell)
    folder.write_failure(cell, f"error: {folder.run(cell)} is full")
    assert folder.outcome(cell).status == "failed"
    assert folder.outcome(cell).reason == f"error: runs/{cell.name} is full"
    assert folder.outcome(study.cells[0]).status == "unfinished"


def test_where_data_were_matters_to_runs_and_not_to_the_table(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    _, folder = study_of(tmp_path, grids=[{"dataset": ["mnist"]}])
    recipe = tmp_path / "recipe.yaml"
    cells, moved = (read_study(recipe, str(root)).cells for root in (data, other))
    complete(folder, cells[0], [0, 1])
    folder.write_recipe(cells[0]).rename(folder.run(cells[0]) / "args.yaml")
    with pytest.raises(ConfigError, match=r"with --data-root '.*data', and '.*other' is asked for"):
        folder.check(moved)
    command.main([str(recipe), "--output-dir", str(folder.path), "--table"])
    assert "| c-ep | **50.00** (0.44) |" in (folder.path / "table.md").read_text()
    shutil.rmtree(folder.run(cells[0]))
    folder.write_recipe(cells[0])
    folder.write_failure(cells[0], "error: no")
    assert folder.outcome(moved[0]).status == "unfinished"
    command.main([str(recipe), "--output-dir", str(folder.path), "--table"])
    assert "1 cells: 1 failed" in (folder.path / "table.md").read_text()


def test_a_study_with_failed_cells_ends_with_a_sentence_that_says_how_to_run_them_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(process, "SCRIPT", stand_in(tmp_path / "run.py", "fails"))
    study_of(tmp_path, grids=[{"seed": [0, 1]}])
    with pytest.raises(SystemExit, match="1"):
        command.main([str(tmp_path / "recipe.yaml"), "--output-dir", str(tmp_path / "study")])
    assert "2 cells failed, and the table says why: --retry runs them again" in capsys.readouterr().err
    assert "error: it cannot be done." in (tmp_path / "study" / "table.md").read_text()


def test_what_runs_nothing_changes_nothing_and_options_without_a_use_are_refused(tmp_path, capsys):
    study, folder = study_of(tmp_path, grids=[{"seed": [0]}])
    folder.write_failure(study.cells[0], "error: no")
    arguments = [str(tmp_path / "recipe.yaml"), "--output-dir", str(folder.path)]
    command.main([*arguments, "--retry", "--dry-run"])
    assert folder.outcome(study.cells[0]).status == "failed"
    for one, other in (("--table", "--retry"), ("--table", "--dry-run"), ("--cluster", "--jobs=2")):
        with pytest.raises(SystemExit, match="1"):
            command.main([*arguments, one, other])
        assert f"{one} has no use for {other[:6]}" in capsys.readouterr().err


def test_the_time_left_is_that_of_cells_alike(tmp_path):
    study, folder = study_of(tmp_path, grids=[{"algo": ["c-ep", "n-ep"], "seed": [0, 1]}])
    assert Counts(folder, study.cells, 1).seconds_left() is None
    complete(folder, study.cells[0], [0, 1])
    assert Counts(folder, study.cells, 1).seconds_left() == 300
    assert Counts(folder, study.cells, 2).seconds_left() == 150
    assert (
        Counts(folder, study.cells, 2).line(1) == "1 of 4 cells done, 1 running, 0 diverged, 0 failed, about 2 min left"
    )
    other = study_of(tmp_path, grids=[{"dataset": ["fashion-mnist-sample", "mnist"]}])[0].cells
    assert Counts(folder, [*study.cells, other[1]], 1).seconds_left() is None


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


@pytest.mark.slow
def test_kill_9_at_five_moments_leaves_the_table_as_it_is_to_the_bit(tmp_path):
    settings = {"dataset": str(write_images(tmp_path / "images")), "epochs": 3, "batch_size": 9}
    settings |= {"model_kwargs": {"widths": [4, 4, 4, 4], "gains": 0.8}, "checkpoint_minutes": 1e-4}
    grids = [{"algo": ["c-ep", "n-ep"], "seed": [0, 1, 2]}, {"algo": ["p-ep"], "lr": [[1e20]]}]  # which diverges
    recipe = write_recipe(tmp_path / "small.yaml", settings=settings, grids=grids)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    jobs = min(2, len(os.sched_getaffinity(0)))
    script, *arguments = map(str, (Path(__file__).with_name("killed_study.py"), undisturbed, killed, recipe))
    command_line = [sys.executable, script, *arguments, "--jobs", str(jobs)]
    result = subprocess.run(command_line, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)
    whole, again = ({path.name: path.read_bytes() for path in out.glob("table.*")} for out in (undisturbed, killed))
    assert whole == again
    assert len(whole) == 4
    cells = json.loads(whole["table.json"])["cells"]
    assert [cell["status"] for cell in cells] == ["completed"] * 2 + ["diverged"] + ["completed"] * 4
    for cell in cells:
        first, second = (out / "runs" / cell["name"] for out in (undisturbed, killed))
        assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
        if cell["status"] == "completed":
            assert_same_run(second, first)
