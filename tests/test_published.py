"""From a run to a checkpoint: what is measured, stored and said; what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from published_runs import packaged, set_sha256, write_images, write_run
from safetensors.torch import load_file, save_file

from timm_ebl import Minimizer
from timm_ebl.data.dataset import load_dataset
from timm_ebl.errors import CheckpointError
from timm_ebl.hub.__main__ import main
from timm_ebl.hub.package import _default_tag, package
from timm_ebl.hub.publish import _prepare
from timm_ebl.training.build import build_model, build_transform
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.inference import same_error
from timm_ebl.training.records import card_error
from timm_ebl.training.run_folder import RunFolder
from timm_ebl.training.trained import TrainedModel


def test_a_run_becomes_weights_and_records(tmp_path, run):
    name, weights, records = packaged(tmp_path, run)
    assert name == "dchn_tiny_cifar10.c_ep_noise"  # of a folder of that name
    assert sorted(path.name for path in weights.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in records.iterdir()) == [
        "README.md",
        "args.yaml",
        "curves.png",
        "metrics.jsonl",
        "summary.json",
    ]
    assert (records / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    assert parse_config(["--config", str(records / "args.yaml")]).epochs == 2


def test_a_run_that_says_its_classes_twice_is_packaged_with_one_that_transformers_takes(tmp_path, run):
    config = json.loads((run / "config.json").read_text())
    config["model_args"]["num_classes"] = config["num_classes"]  # as timm writes it
    (run / "config.json").write_text(json.dumps(config))
    _, weights, _ = packaged(tmp_path, run)
    stored = json.loads((weights / "config.json").read_text())
    assert stored["num_classes"] == 3
    assert "num_classes" not in stored["model_args"]


OURS = {"order": "asynchronous", "sweeps": 7, "omega": [*Minimizer.omega], "start": "feedforward"}


def named(folder):
    """The minimiser in a folder's configuration."""
    settings = json.loads((folder / "config.json").read_text())["model_args"]
    return {key: settings[key] for key in OURS if key in settings}


@pytest.mark.parametrize(
    ("network", "sweeps", "kept"),
    [("dchn", 7, OURS), ("dchn", 9, OURS | {"sweeps": 9}), ("pcn_vgg5", 7, {})],
)
def test_a_run_keeps_the_minimiser_of_what_sweeps(tmp_path, images, network, sweeps, kept):
    train = load_dataset(str(images), "train")
    config = TrainConfig(dataset=str(images), model=f"{network}_tiny_cifar10", free_sweeps=sweeps)
    model = build_model(config, train)
    RunFolder.create(tmp_path / "run", "").write_model(model, build_transform(config, train), train.classes)
    assert named(tmp_path / "run") == kept
    assert timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).minimizer == model.minimizer


def test_a_folder_is_not_taken_for_the_data_set_whose_name_it_has(tmp_path):
    name, _, records = packaged(tmp_path, write_run(tmp_path / "run", write_images(tmp_path / "cifar10")))
    card = (records / "README.md").read_text()
    assert name == "dchn_tiny_cifar10.c_ep_cifar10_folder"
    assert 'load_dataset("cifar10-folder", "test")' in card
    assert " --dataset FOLDER` measures" in card
    assert "uoft-cs" not in card
    assert "mirror" not in card


def test_a_checkpoint_that_lacks_a_record_is_not_published(tmp_path, run):
    name, weights, records = packaged(tmp_path, run)
    (records / "curves.png").unlink()
    with pytest.raises(CheckpointError, match=f"{name} cannot be published: it has no curves.png"):
        _prepare(TrainedModel(name, weights, records), tmp_path, "owner/name", None)


def test_the_error_in_every_file_is_that_of_the_stored_weights(tmp_path, run, images):
    _, weights, records = packaged(tmp_path, run)
    test = load_dataset(str(images), "test")
    model = timm.create_model(f"local-dir:{weights}", pretrained=True).eval()
    outputs = model(build_transform(TrainConfig(), load_dataset(str(images), "train")).eval(test.images))
    error = float((outputs.argmax(1) != test.labels).double().mean() * 100)
    evaluation = json.loads((weights / "config.json").read_text())["evaluation"]
    assert evaluation["error"] == json.loads((records / "summary.json").read_text())["test_error"] == error
    assert card_error(records / "README.md") == pytest.approx(error, abs=1e-3)
    assert evaluation["images"] == 12


def test_no_path_of_the_machine_is_left(tmp_path, run):
    _, weights, records = packaged(tmp_path, run)
    for path in (*weights.glob("*.json"), *records.glob("*.[jmy]*")):
        assert str(tmp_path) not in path.read_text(), path


def test_weights_are_stored_in_16_bits_where_that_keeps_the_error(tmp_path, run):
    _, weights, _ = packaged(tmp_path, run)
    assert {value.dtype for value in load_file(weights / "model.safetensors").values()} == {torch.float16}


def test_weights_stay_in_32_bits_where_rounding_would_change_the_error(tmp_path):
    images = write_images(tmp_path / "images")
    (images / "test/b/0.png").unlink()  # class 1 has fewer images than class 0
    run = write_run(tmp_path / "run", images)
    tensors = load_file(run / "model.safetensors")
    tensors["head.weight"].zero_()
    tensors["head.bias"] = torch.tensor([1.0, 1.00001, 0.0])  # the same number in 16 bits
    save_file(tensors, run / "model.safetensors")
    set_sha256(run)
    test = load_dataset(str(images), "test")
    summary = json.loads((run / "summary.json").read_text())
    summary["test_error"] = float((test.labels != 1).double().mean() * 100)
    (run / "summary.json").write_text(json.dumps(summary))
    _, weights, _ = packaged(tmp_path, run)
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(weights / "model.safetensors").items())


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.iterdir()}


def test_a_name_that_is_taken_is_replaced_only_when_that_is_asked_for(tmp_path, run, images, capsys):
    name, *folders = packaged(tmp_path, run, tag="first")
    before, other = contents(*folders), write_run(tmp_path / "other", images, 1)
    error = json.loads((run / "summary.json").read_text())["test_error"]
    there = f"{name} ({error:.2f} % test error on 12 images, 2 epochs, seed 0)"
    with pytest.raises(CheckpointError) as refusal:
        packaged(tmp_path, other, tag="first")
    assert str(refusal.value) == f"{there} is there already: --force replaces it, --tag gives this run another name."
    assert contents(*folders) == before
    packaged(tmp_path, other, tag="second")
    assert contents(*folders) == before
    assert not capsys.readouterr().out
    packaged(tmp_path, other, tag="first", force=True)
    assert capsys.readouterr().out == f"replacing {there}\n"
    assert contents(*folders) != before
    assert TrainedModel(name, *folders).summary["seed"] == 1


@pytest.mark.parametrize("lost", ["config.json", "summary.json"])
def test_a_name_with_part_of_a_checkpoint_is_taken(tmp_path, run, lost):
    _, *folders = packaged(tmp_path, run)
    next(folder / lost for folder in folders if (folder / lost).exists()).unlink()
    with pytest.raises(CheckpointError, match=r"c_ep_noise \(incomplete or damaged\) is there already"):
        packaged(tmp_path, run)


@pytest.mark.parametrize(
    ("model", "dataset", "tag"),
    [
        ("dchn_tiny_cifar10", "cifar10", "n_ep"),
        ("dchn_cifar10", "uoft-cs/cifar10", "n_ep"),
        ("dchn_small_fashion_mnist", "fashion-mnist", "n_ep"),
        ("dchn_tiny_fashion_mnist", None, "n_ep_sample"),
        ("dchn_tiny_fashion_mnist", "fashion-mnist-sample", "n_ep_sample"),
        ("dchn_tiny_fashion_mnist", "mnist", "n_ep_mnist"),
        ("dchn_tiny_cifar10", "/some/where/my pictures/", "n_ep_my_pictures"),
        ("dchn_shallow", "cifar10", "n_ep_cifar10"),
        ("hopfield_resnet13_tiny_fashion_mnist", "fashion-mnist", "n_ep"),
        ("pcn_vgg5_cifar100", "cifar100", "n_ep"),
    ],
)
def test_the_tag_tells_the_data_where_the_name_does_not(model, dataset, tag):
    run = TrainedModel("a run", Path(), Path())
    run.__dict__.update(config={"architecture": model}, recipe=TrainConfig(algo="n-ep", dataset=dataset))
    assert _default_tag(run) == tag


def test_a_run_on_the_sample_never_has_the_tag_of_the_full_data(tmp_path, run):
    checkpoint = TrainedModel.open(run)
    checkpoint.__dict__["recipe"] = replace(checkpoint.recipe, dataset=None)
    (tmp_path / "records").mkdir()
    with pytest.raises(CheckpointError, match="tag of a run on the embedded sample ends in 'sample', unlike 'c_ep'"):
        package(checkpoint, "c_ep", weights=tmp_path / "weights", records=tmp_path / "records")
    assert not (tmp_path / "weights").exists()


def test_a_new_checkpoint_is_found_before_timm_has_registered_it(tmp_path, run, monkeypatch):
    name, weights, records = packaged(tmp_path, run, tag="new")
    monkeypatch.setattr("timm_ebl.models.weights.SHIPPED", weights.parent)
    monkeypatch.setattr("timm_ebl.training.finding.SHIPPED", weights.parent)
    monkeypatch.setattr("timm_ebl.training.finding.RECIPES", records.parent)
    assert name == "dchn_tiny_cifar10.new"
    assert TrainedModel.open(name) == TrainedModel.open("dchn_tiny_cifar10") == TrainedModel(name, weights, records)


def test_other_seeds_give_the_spread(tmp_path, run, images):
    others = [write_run(tmp_path / str(seed), images, seed) for seed in (1, 2)]
    errors = [json.loads((path / "summary.json").read_text())["test_error"] for path in (run, *others)]
    _, _, records = packaged(tmp_path, run, *others)
    mean, deviation = (float(f(torch.tensor(errors, dtype=torch.float64))) for f in (torch.mean, torch.std))
    card = (records / "README.md").read_text()
    assert f"mean of 3 seeds {mean:.2f} ± {deviation:.2f} %" in card
    assert "| seeds | 0 (these weights), 1, 2 |" in card


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run, images: write_run(run.parent / "b", images, 1, test_error=99.0), ["summary.json says 99.00 %"]),
        (lambda run, images: write_run(run.parent / "b", images, 1, status="diverged"), ["diverged"]),
        (lambda run, images: (run / "curves.png").unlink(), ["curves.png", "no finished run"]),
        (lambda run, images: (run / "summary.json").write_text("{"), ["summary.json cannot be read"]),
        (lambda run, images: (run / "metrics.jsonl").write_text("{"), ["metrics.jsonl cannot be read"]),
        (lambda run, images: (run / "args.yaml").write_text("epoch: 3"), ["args.yaml", "'epoch'"]),
        (lambda run, images: (run / "config.json").unlink(), ["config.json"]),
        (lambda run, images: (run / "config.json").write_text("[]"), ["config.json", "architecture"]),
    ],
)
def test_a_run_that_is_not_what_it_says_is_refused(tmp_path, run, images, spoil, words):
    spoiled = spoil(run, images)
    with pytest.raises(CheckpointError) as refusal:
        packaged(tmp_path, spoiled if isinstance(spoiled, type(run)) else run)
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert not (tmp_path / "weights").exists()


def test_runs_that_do_not_belong_together_are_refused(tmp_path, run, images):
    other = write_run(tmp_path / "other", images, 1)
    settings = yaml.safe_load((other / "args.yaml").read_text())
    (other / "args.yaml").write_text(yaml.safe_dump(settings | {"epochs": 9}))
    with pytest.raises(CheckpointError, match="only the seed may differ"):
        packaged(tmp_path, run, other)
    with pytest.raises(CheckpointError, match="bad diverged: it has no test error"):
        packaged(tmp_path, run, write_run(tmp_path / "bad", images, 1, status="diverged"))
    with pytest.raises(CheckpointError, match="has the seed 0 of another run"):
        packaged(tmp_path, run, write_run(tmp_path / "twin", images, 0))


def test_data_that_have_moved_are_asked_for_and_then_found(tmp_path, run, images, capsys):
    settings = yaml.safe_load((run / "args.yaml").read_text()) | {"dataset": "/old/home/noise"}
    (run / "args.yaml").write_text(yaml.safe_dump(settings))
    for command in (["verify", run], ["package", run], ["publish", run, "--repo-id", "me/net", "--dry-run"]):
        with pytest.raises(SystemExit, match="1"):
            main([*map(str, command)])
        said = capsys.readouterr().err
        assert re.fullmatch(r"error: '/old/home/noise' .* --dataset FOLDER says where it is\.\n", said)
    main(["verify", str(run), "--dataset", str(images)])
    name, _, records = packaged(tmp_path, run, dataset=str(images))
    assert name == "dchn_tiny_cifar10.c_ep_noise"
    assert "\ndataset: noise\n" in (records / "args.yaml").read_text()
    assert not any("/old/home" in path.read_text() for path in records.glob("*.[jmy]*"))


def test_errors_may_differ_by_rounding_alone():
    assert same_error(10.0, 10.05, 10_000)
    assert not same_error(10.0, 10.06, 10_000)
    assert same_error(10.0, 10.2, 1000)
    assert not same_error(10.0, 10.3, 1000)
