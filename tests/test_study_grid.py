"""From the recipe of a study to its cells: every combination once, rows that say what differs, bad recipes refused."""

from contextlib import nullcontext
from itertools import product

import pytest
from runs import write_images
from studies import complete, study_of, write_recipe

from timm_ebl.data.paper import TABLE_1
from timm_ebl.errors import ConfigError
from timm_ebl.tools.study.grid import read_study
from timm_ebl.tools.study.machine import check_jobs
from timm_ebl.tools.study.table import build_table
from timm_ebl.training.config import read_recipe, resolve
from timm_ebl.training.finding import RECIPES

RULES = ["c-ep", "n-ep", "p-ep"]
SEEDS = [{"algo": ["c-ep"], "seed": [0, 1, 2, 3]}]


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


def test_presets_are_rows_and_other_settings_are_told_from_theirs(tmp_path):
    data = [{"dataset": "mnist"}, {"dataset": "cifar10"}]
    grid = {"data": data, "preset": ["fast", "paper"], "free_sweeps": [7, 60]}
    rows = [cell.row for cell in study_of(tmp_path, grids=[grid])[0].cells if cell.dataset == "mnist"]
    assert rows == ["c-ep", "c-ep, free_sweeps 60", "c-ep, preset paper, free_sweeps 7", "c-ep, preset paper"]


def test_what_one_grid_names_and_another_leaves_as_it_is_tells_their_rows_apart(tmp_path):
    many = {"algo": ["c-ep", "p-ep"], "dataset": ["mnist", "cifar10"], "beta": [0.5]}
    study, _ = study_of(tmp_path, grids=[{"algo": ["c-ep"], "dataset": ["mnist", "cifar10"]}, many])
    assert [cell.row for cell in study.cells[::2]] == ["c-ep", "c-ep, beta 0.5", "p-ep, beta 0.5"]
    model = "hopfield_resnet13_tiny_cifar10"
    one = {"algo": ["c-ep"], "data": [{"dataset": "mnist", "beta": 0.1}, {"dataset": "cifar10", "beta": 0.5}]}
    study, _ = study_of(tmp_path, grids=[one, {"algo": ["tbp"], "dataset": ["mnist", "cifar10"]}])
    assert [cell.row for cell in study.cells] == ["c-ep", "c-ep", "tbp", "tbp"]  # which has no use for beta
    grids = [{"algo": ["p-ep"], "model": [model]}, {"algo": ["p-ep"], "model": [model], "free_sweeps": [60, 120]}]
    with pytest.raises(ConfigError, match="free_sweeps 120 is there twice"):  # the preset's
        study_of(tmp_path, settings={"preset": "paper", "dataset": "cifar10"}, grids=grids)
    grids[1]["free_sweeps"] = [60]
    study, _ = study_of(tmp_path, settings={"preset": "paper", "dataset": "cifar10"}, grids=grids)
    assert [cell.row for cell in study.cells] == [f"p-ep, model {model}", f"p-ep, model {model}, free_sweeps 60"]


def test_networks_with_defaults_of_their_own_are_compared_at_the_same_setting(tmp_path):
    models = ["dchn_tiny_cifar10", "hopfield_resnet13_tiny_cifar10"]
    grid = {"model": models, "free_sweeps": [7, 15]}
    study, folder = study_of(tmp_path, settings={"dataset": "cifar10"}, grids=[grid])
    for cell in study.cells:
        complete(folder, cell, [0, 1, 1])
    assert [cell.setting for cell in study.cells] == [
        f"model {model}, free_sweeps {sweeps}" for model, sweeps in product(models, (7, 15))
    ]
    pairs = [(each.option, each.first[-2:], each.second[-2:]) for each in build_table(study, folder).comparisons]
    assert sorted(pairs) == [("free_sweeps", " 7", "15")] * 2 + [("model", " 7", " 7"), ("model", "15", "15")]


def test_a_split_that_is_left_open_may_be_the_one_that_is_named(tmp_path):
    data = {"dataset": ["cifar10"]}
    for split in ("test", "hard"):
        grids = [{"algo": ["c-ep"], **data}, {"algo": ["p-ep"], "test_split": [split], "dataset": ["cifar10"]}]
        with nullcontext() if split == "test" else pytest.raises(ConfigError, match="test_split decides by which"):
            assert len(study_of(tmp_path, grids=grids)[0].cells) == 2


def test_common_settings_need_be_complete_with_those_of_the_grids_alone(tmp_path):
    study, _ = study_of(tmp_path, settings={"warmup_epochs": 10}, grids=[{"epochs": [20, 40]}])
    assert [cell.row for cell in study.cells] == ["c-ep, epochs 20", "c-ep, epochs 40"]


def test_the_numbers_of_a_cell_do_not_depend_on_how_many_run_at_once(tmp_path):
    study, folder = study_of(tmp_path, settings={"checkpoint_minutes": 0.5}, grids=SEEDS)
    assert {(cell.config.threads, cell.config.mixed_precision) for cell in study.cells} == {(1, "no")}
    with pytest.raises(ConfigError, match=r"^--jobs 9999 with 1 thread a cell need 9999 cores"):
        check_jobs(study.cells, 9999)
    folder.write_recipe(study.cells[1])
    assert resolve(read_recipe(folder.recipe(study.cells[1]))) == study.cells[1].config
    many = study_of(tmp_path, settings={"threads": 9999}, grids=SEEDS)[0].cells
    with pytest.raises(ConfigError, match=r"^--jobs 1 with 9999 threads a cell need 9999 cores"):
        check_jobs(many, 1)


def test_a_folder_of_images_is_named_by_as_much_of_its_path_as_tells_it_from_others(tmp_path):
    paths = [str(write_images(tmp_path / name)) for name in ("a/flowers", "b/flowers", "b/mnist", "b/trees")]
    data = [{"dataset": path, "model": "dchn_tiny_mnist"} for path in (*paths, "mnist")]
    study, _ = study_of(tmp_path, grids=[{"data": data}])
    assert [cell.dataset for cell in study.cells] == ["a/flowers", "b/flowers", "b/mnist", "trees", "mnist"]
    assert study.cells[3].config.dataset == paths[3]
    assert study.cells[0].name == "c-ep_a-flowers_model=dchn_tiny_mnist_seed=0"


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
        ({"grids": [{"dataset": ["fashion-mnist-sample"]}, {"algo": ["c-ep"]}]}, "the cell algo c-ep is there twice"),
        ({"grids": [{"data": [{"seed": 1}], "seed": [0]}]}, "seed is set by two axes"),
        ({"grids": [{"threads": [None]}]}, "threads null: threads may not be left open in a study"),
        ({"grids": [{"algo": ["tbp"], "beta": [0.1]}]}, "the cell algo tbp, beta 0.1: Rule 'tbp' has no use"),
        ({"grids": [{"model": ["pcn_vgg5_tiny_mnist"], "omega": [[1.0]]}]}, "Model 'pcn_.*' has no use for --omega"),
        ({"grids": [{"dataset": ["cifar100"], "label_column": ["fine", "coarse"]}]}, "label_column decides by which"),
        ({"grids": [{"seed": [0]}], "settings": {"resume": True}}, "resume is decided by the study"),
        ({"grids": [{"seed": [0]}], "settings": [1]}, "settings is a mapping"),
    ],
)
def test_bad_recipes_are_refused_in_one_sentence(tmp_path, parts, words):
    with pytest.raises(ConfigError, match=words) as error:
        read_study(write_recipe(tmp_path / "recipe.yaml", **parts))
    assert "\n" not in str(error.value)


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
    assert len(positive.cells) == 219
    assert {cell.config.seed for cell in positive.cells} == {0, 1, 2}
    assert len({cell.row for cell in positive.cells}) == 73
