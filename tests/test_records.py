"""Whatever stands in the files of a run or a checkpoint, verifying, packaging and drawing them end by a sentence."""

import copy
import itertools
import json
import random

import pytest

from timm_ebl.errors import CheckpointError, EBLError
from timm_ebl.hub import __main__ as hub
from timm_ebl.hub.package import package
from timm_ebl.tools import plots
from timm_ebl.training.inference import load_model
from timm_ebl.training.trained import TrainedModel

VALUES = [None, "text", "", -1, 0, 10**30, float("nan"), float("inf"), [], ["x", 1], {}, {"x": [None]}, True, 0.5]
DROP = object()


def places(record, path=()):
    """The paths of all entries of nested mappings and lists."""
    entries = record.items() if isinstance(record, dict) else enumerate(record)
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def changed(record, path, value):
    record = copy.deepcopy(record)
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    if value is DROP:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return record


def faults(record, count):
    """Some of the records that differ from one in a place, and some that are nothing like it."""
    every = [changed(record, path, value) for path in places(record) for value in (*VALUES, DROP)]
    return random.Random(0).sample(every, count) + VALUES


def told(call):
    """Whether a call ends by an expected error; any other one is raised."""
    try:
        call()
    except EBLError:
        return True
    return False


def test_verify_and_package_of_any_configuration_or_summary_end_by_a_sentence(tmp_path, run, images):
    test = TrainedModel.open(run).test_split(dataset=str(images))
    target = {"weights": tmp_path, "records": tmp_path}
    packaged = tmp_path / package(TrainedModel.open(run), **target)
    for folder, file in itertools.product((run, packaged), ("config.json", "summary.json")):
        whole = (folder / file).read_text()
        for fault in faults(json.loads(whole), 25):
            (folder / file).write_text(json.dumps(fault))
            told(lambda folder=folder: hub.verify(folder, test=test))
            if folder == run:
                told(lambda: package(TrainedModel.open(run), "tag", **target))
        (folder / file).write_text(whole)
        assert not told(lambda folder=folder: hub.verify(folder, test=test))


@pytest.mark.parametrize("file", ["metrics.jsonl", "summary.json"])
def test_plots_of_any_metrics_or_summary_end_by_a_sentence(run, file):
    whole = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    if file == "summary.json":
        whole = json.loads((run / file).read_text())
    refused = 0
    for fault in faults(whole, 60):
        lines = fault if file == "metrics.jsonl" and isinstance(fault, list) else [fault]
        (run / file).write_text("\n".join(map(json.dumps, lines)))
        refused += told(lambda: plots._read_run(run))
    assert refused > 60


def test_energies_and_residuals_of_any_size_are_drawn(tmp_path):
    epoch = {"epoch": 1, "train_error": 0, "held_out_error": None, "seconds": 0}
    summary = {"model": "m", "algo": "a", "dataset": "d", "seed": 0}
    for value in (float("nan"), float("inf"), 10**30, -1, 0):
        plots.plot_curves(tmp_path / "curves.png", [epoch | {"energy": value, "residual": value}], summary)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("metrics.jsonl", "", "metrics.jsonl has no epoch"),
        ("metrics.jsonl", '{"epoch": 1', "metrics.jsonl cannot be read"),
        ("summary.json", "\xff", "summary.json cannot be read"),
        ("summary.json", "[" * 100_000, "summary.json cannot be read"),
        ("config.json", "{}", "it names no architecture"),
        ("config.json", '{"architecture": "../resnet"}', "'../resnet' is no model that timm knows"),
        ("model.safetensors", "x", "model.safetensors"),
        ("args.yaml", "epoch: 3", "unknown option 'epoch'"),
    ],
)
def test_a_broken_file_is_named_in_one_line(run, capsys, file, content, words):
    (run / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(SystemExit, match="1"):
        plots.main([str(run)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_model_without_an_energy_is_not_loaded(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"architecture": "test_resnet", "model_args": {}}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(run)


def test_a_tolerance_that_is_never_reached_is_not_loaded(run):
    config = json.loads((run / "config.json").read_text())
    config["model_args"]["tolerance"] = 1e-30
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="tolerance of 1e-30 is below the rounding"):
        load_model(run)


@pytest.mark.parametrize("tag", ["../..", "/tmp/x", "a/b", "", ".", "..", "a b", "a\0b", "-a"])
def test_a_tag_that_is_no_part_of_a_name_writes_nothing(tmp_path, run, tag):
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="A --tag has letters, digits, - and _, and no more"):
        package(TrainedModel.open(run), tag, weights=inside, records=inside)
    assert sorted(tmp_path.rglob("*")) == before
