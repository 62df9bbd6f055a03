"""Results of studies in the repository: of the cells of their recipes, with the figures that their guides state."""

import json

import pytest
from readmes import RESULTS

from timm_ebl.tools.study.grid import read_study


def table(folder):
    return json.loads((folder / "table.json").read_text(encoding="utf-8"))


def test_there_are_results():
    assert RESULTS


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_a_result_has_the_cells_of_its_recipe(folder):
    study = read_study(folder.with_suffix(".yaml"))
    assert table(folder)["name"] == study.name
    assert [cell["name"] for cell in table(folder)["cells"]] == [cell.name for cell in study.cells]


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_the_guide_of_a_result_states_its_errors(folder):
    guide = (folder / "README.md").read_text(encoding="utf-8")
    entries = [entry for entry in table(folder)["entries"] if entry["deviation"] is not None]
    assert entries
    figures = [f"{entry['mean']:.2f} +- {entry['deviation']:.2f}" for entry in entries]
    assert [each for each in figures if each not in guide] == []


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_the_figure_of_a_result_is_there(folder):
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG")
