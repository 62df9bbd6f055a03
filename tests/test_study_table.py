"""The table of a study is that of its runs, however it is rendered."""

import csv
import io
import json
from itertools import product

import pytest
import torch
from studies import complete, study_of

from timm_ebl.errors import CheckpointError
from timm_ebl.tools.study.render import to_csv, to_json, to_markdown, write_table
from timm_ebl.tools.study.sheet import lay_out
from timm_ebl.tools.study.table import build_table


def test_the_table_is_that_of_the_runs(tmp_path):
    grid = {"data": [{"dataset": "mnist"}, {"dataset": "cifar10"}], "algo": ["c-ep", "n-ep", "cl"], "seed": [0, 1]}
    study, folder = study_of(tmp_path, grids=[grid])
    counts = {("c-ep", 0): 10, ("c-ep", 1): 14, ("n-ep", 0): 30, ("n-ep", 1): 40, ("cl", 0): 60}
    for cell in study.cells:
        found = counts.get((cell.config.algo, cell.config.seed))
        if cell.dataset == "mnist" and found is not None:
            complete(folder, cell, [1] * found + [0] * (100 - found))
    mnist_cl = next(cell for cell in study.cells if cell.row == "cl" and cell.config.seed == 1)
    folder.write_failure(mnist_cl, "error: no | memory")
    table = build_table(study, folder)

    entry = table.entries["c-ep", "mnist"]
    assert (entry.mean, entry.deviation, entry.paper) == (12.0, pytest.approx(8**0.5), 0.44)
    assert table.entries["cl", "mnist"].others == {1: ("failed", "error: no | memory")}
    assert table.entries["cl", "cifar10"].mean is None
    first, second, third = table.comparisons
    assert (first.first, first.second, first.seeds, first.difference) == ("c-ep", "n-ep", (0, 1), pytest.approx(-23))
    assert first.p == 2 / 2**20  # seed 0: 20 images that n-ep alone gets wrong; seed 1: 26
    assert (second.seeds, second.p) == ((0,), 2 / 2**50)
    assert second.interval is None
    assert third.corrected == pytest.approx(2 * 2 / 2**30)
    assert first.interval == pytest.approx((-23 - 12.706 * 3, -23 + 12.706 * 3))  # -20 and -26
    assert not any(each.significant for each in table.comparisons)  # two seeds
    assert (table.models, table.test_images) == ({"mnist": ("m",), "cifar10": ()}, {"mnist": 100})
    (agreement,) = table.agreements
    assert agreement.seeds == (0,)  # cl has no other
    assert agreement.tau == pytest.approx(1 / 3)  # c-ep < n-ep < cl here, n-ep < c-ep < cl in the paper
    assert agreement.interval is None

    shown = to_markdown(table)
    assert "| c-ep | **12.00 +- 2.83** (0.44) | - (11.1), 2 unfinished |" in shown
    assert "| cl | 60.00 (0.61), 1 failed | - (31.4), 2 unfinished |" in shown
    assert "error: no \\| memory" in shown
    assert "5 completed, 1 failed, 6 unfinished" in shown
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [float(line["mean"]) for line in lines if line["dataset"] == "mnist"] == [12.0, 35.0, 60.0]
    assert lines[2]["failed"] == "1"
    found = json.loads(to_json(table))
    assert len(found["cells"]) == 12
    assert {cell["status"] for cell in found["cells"]} == {"completed", "failed", "unfinished"}
    first_time = {path.name: path.read_bytes() for path in write_table(table, tmp_path)}
    assert {path.name: path.read_bytes() for path in write_table(build_table(study, folder), tmp_path)} == first_time
    assert first_time.keys() == {"table.md", "table.csv", "table.json", "table.png"}


@pytest.mark.parametrize(
    ("model", "paper"),
    [("dchn_tiny_cifar10", 11.1), ("pcn_vgg5_tiny_cifar10", None), ("hopfield_resnet13_tiny_cifar10", None)],
)
def test_the_papers_figures_are_for_the_papers_kind_of_network(tmp_path, model, paper):
    study, folder = study_of(tmp_path, settings={"dataset": "cifar10", "model": model}, grids=[{"seed": [0]}])
    complete(folder, study.cells[0], [0, 1, 1])
    (entry,) = build_table(study, folder).entries.values()
    assert entry.paper == paper


def test_rows_that_differ_in_two_things_are_not_compared(tmp_path):
    study, folder = study_of(tmp_path, grids=[{"algo": ["c-ep", "n-ep"], "beta": [0.1, 0.2]}])
    for cell in study.cells:
        complete(folder, cell, [0, 1, 1])
    pairs = {frozenset((each.first, each.second)) for each in build_table(study, folder).comparisons}
    rows = [f"{rule}, beta {beta}" for rule, beta in product(["c-ep", "n-ep"], [0.1, 0.2])]
    assert pairs == {frozenset((rows[a], rows[b])) for a, b in ((0, 1), (2, 3), (0, 2), (1, 3))}


def test_rules_under_several_settings_are_shown_side_by_side(tmp_path):
    grids = [{"algo": ["c-ep", "n-ep"], "beta": [0.1, 0.2]}, {"algo": ["cl"]}]
    study, folder = study_of(tmp_path, settings={"dataset": "mnist", "beta": 0.1}, grids=grids)
    for cell, wrong in zip(study.cells, ([1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]), strict=False):
        complete(folder, cell, wrong)
    table = build_table(study, folder)
    shown = to_markdown(table)
    assert "## mnist\n\n|  | c-ep | n-ep | cl |" in shown
    assert "| common settings | **25.00** (0.44) | 75.00 (0.42) | - (0.61), 1 unfinished |" in shown
    assert "| beta 0.2 | 50.00 | -, 1 unfinished |  |" in shown
    assert "<summary>mnist, beta: 1 pairs, 0 bold</summary>" in shown
    assert "| c-ep | n-ep | 0 | -50.00 |" in shown.partition("<summary>mnist, algo: 1 pairs")[2]
    (sheet,) = lay_out(table)
    assert sheet.entries["beta 0.2", "c-ep"].mean == 50
    write_table(table, tmp_path)


@pytest.mark.parametrize(
    ("counts", "significant"),
    [
        ([(10, 60), (12, 62), (11, 60)], True),
        ([(10, 60), (12, 62)], False),  # a seed has not been run
        ([(10, 60), (10, 99), (80, 99)], False),  # the seeds' interval has 0
        ([(10, 12), (11, 13), (10, 12)], False),  # the images may have done it
    ],
)
def test_a_difference_is_significant_where_images_and_seeds_speak_for_it(tmp_path, counts, significant):
    study, folder = study_of(tmp_path, grids=[{"algo": ["c-ep", "n-ep"], "seed": [0, 1, 2]}])
    for seed, pair in enumerate(counts):
        for cell, count in zip([cell for cell in study.cells if cell.config.seed == seed], pair, strict=True):
            complete(folder, cell, [1] * count + [0] * (100 - count))
    table = build_table(study, folder)
    assert [each.significant for each in table.comparisons] == [significant]
    assert f"1 pairs, {int(significant)} bold" in to_markdown(table)


def test_runs_with_other_images_of_one_data_set_are_not_compared(tmp_path):
    study, folder = study_of(tmp_path, grids=[{"algo": ["c-ep", "n-ep"], "seed": [0, 1]}])
    for cell in study.cells:
        complete(folder, cell, [0, 1])
    summary = folder.run(study.cells[2]) / "summary.json"
    whole = summary.read_text()
    summary.write_text(whole.replace("of these images", "of others"))  # another seed holds out others
    folder_of_another = folder.run(study.cells[3]) / "summary.json"
    folder_of_another.write_text(whole.replace("of these images", "of others"))
    build_table(study, folder)
    summary.write_text(whole)
    with pytest.raises(CheckpointError, match=r"n-ep.*seed=1 had other images than .*c-ep.*seed=1: remove one"):
        build_table(study, folder)


def test_a_rule_that_diverges_wins_nothing(tmp_path):
    grid = {"algo": ["c-ep", "tbp", "cl"], "seed": [0, 1, 2]}
    study, folder = study_of(tmp_path, settings={"dataset": "mnist"}, grids=[grid])
    for cell in study.cells:
        if cell.config.algo == "cl" and cell.config.seed < 2:
            folder.run(cell).mkdir(parents=True)
            ended = {"algo": "cl", "model": "m", "dataset": "mnist", "epochs": 1, "seed": 0, "seconds": 1.0}
            ended |= {"status": "diverged", "reason": "not finite"}
            (folder.run(cell) / "summary.json").write_text(json.dumps(ended))
        else:
            count = {"c-ep": 30, "tbp": 20, "cl": 1}[cell.config.algo] + cell.config.seed
            complete(folder, cell, [1] * count + [0] * (100 - count))
    table = build_table(study, folder)
    assert [each.significant for each in table.comparisons if "cl" in (each.first, each.second)] == [False, False]
    (agreement,) = table.agreements
    assert (agreement.rules, agreement.seeds, agreement.tau) == (("c-ep", "tbp", "cl"), (0, 1, 2), 1.0)
    assert agreement.interval.low <= 1 == agreement.interval.high
    assert "| cl | 3.00 (0.61), 2 diverged |" in to_markdown(table)


def test_runs_with_other_test_images_are_not_compared(tmp_path):
    study, folder = study_of(tmp_path, grids=[{"seed": [0, 1]}])
    complete(folder, study.cells[0], [0, 1])
    complete(folder, study.cells[1], [0, 1], torch.tensor([3, 4], dtype=torch.int32))
    with pytest.raises(CheckpointError, match="is of other test images than"):
        build_table(study, folder)
