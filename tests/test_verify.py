"""What `python -m timm_ebl.hub verify` finds: figures that do not hold, other images, and that all is well."""

import json
import re
from dataclasses import replace

import pytest
from published_runs import packaged, write_run

from timm_ebl.data.dataset import load_dataset
from timm_ebl.errors import CheckpointError
from timm_ebl.hub.__main__ import main
from timm_ebl.hub.verify import verify
from timm_ebl.training.trained import TrainedModel


def test_verify_finds_a_wrong_figure_wherever_it_is(tmp_path, run, images):
    _, weights, records = packaged(tmp_path, run)
    for path in records.iterdir():
        path.rename(weights / path.name)
    found = verify(weights, dataset=str(images))
    assert found.error == json.loads((weights / "summary.json").read_text())["test_error"]
    card, config = ((weights / file).read_text() for file in ("README.md", "config.json"))
    wrong = re.sub(r"(type: error_rate\n      value:) [\d.]+", r"\1 1.5", card)
    (weights / "README.md").write_text(wrong)
    with pytest.raises(CheckpointError, match=r"README.md says 1.50 %"):
        verify(weights, dataset=str(images))
    (weights / "README.md").write_text("no metadata")
    with pytest.raises(CheckpointError, match=r"README.md reports no test error"):
        verify(weights, dataset=str(images))
    (weights / "README.md").write_text(card)
    (weights / "config.json").write_text(re.sub(r'"error": [\d.]+', '"error": 1.5', config))
    with pytest.raises(CheckpointError, match=r"config.json says 1.50 %"):
        verify(weights, dataset=str(images))


def test_verify_does_not_compare_what_was_measured_on_other_images(tmp_path, run, images):
    _, weights, _ = packaged(tmp_path, run)
    test = load_dataset(str(images), "test")
    for other in (test.subset(range(6)), replace(test, labels=test.labels.flip(0))):
        with pytest.raises(CheckpointError, match="cannot be compared"):
            verify(weights, test=other)


@pytest.mark.parametrize(("precision", "differs"), [("no", 0.04), ("bf16", 0.5)])
def test_the_figure_of_a_run_in_16_bits_may_differ_by_half_a_point(tmp_path, images, precision, differs):
    run = TrainedModel.open(write_run(tmp_path / "run", images, mixed_precision=precision))
    measured = replace(run.evaluation, images=5000, error=20.0)
    assert run.agrees(20.0 + differs, measured)
    assert not run.agrees(20.0 + differs + 0.1, measured)
    _, weights, _ = packaged(tmp_path, tmp_path / "run")
    assert not TrainedModel.open(weights).agrees(20.1, measured)


def test_verify_from_the_command_line(tmp_path, run, images, capsys):
    main(["verify", str(run), "--dataset", str(images)])
    assert re.search(r"[\d.]+ % test error on 12 images", capsys.readouterr().out)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"test_error": 99.0}))
    with pytest.raises(SystemExit, match="1"):
        main(["verify", str(run), "--dataset", str(images)])
    assert re.fullmatch(r"error: .*summary.json says 99.00 %.*\n", capsys.readouterr().err)
    with pytest.raises(SystemExit, match="1"):
        main(["verify", "dchn_none"])
    assert "neither a folder nor an id" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        main(["verify", "~nobody-of-this-name/run/x"])
    assert "neither a folder nor an id" in capsys.readouterr().err
