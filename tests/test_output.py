"""Where results are written: refused before work is spent, and without need of any other disk."""

import tempfile

import pytest
import timm
import torch
from runs import SMALL, train, train_ebl
from safetensors import SafetensorError

from timm_ebl.data.transforms import BatchTransform
from timm_ebl.errors import ConfigError, OutputError
from timm_ebl.training.files import LEFTOVER, temporary_folder, writing
from timm_ebl.training.run_folder import RunFolder


@pytest.fixture
def no_tmpdir(tmp_path, monkeypatch):
    """The system has no folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.delenv("TMPDIR", raising=False)


@pytest.mark.parametrize("name", ["x/" * 2100, "file/run"])
def test_a_folder_that_cannot_be_is_refused_before_data_are_loaded(name, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(train_ebl, "load_splits", None)
    with pytest.raises(ConfigError, match=r"Results cannot be written to .*choose another --output-dir"):
        train("--output-dir", f"{tmp_path}/{name}", *SMALL)


def test_a_model_is_written_without_a_folder_for_temporary_files(no_tmpdir, tiny, tmp_path):
    RunFolder(tmp_path).write_model(tiny, BatchTransform((0.5,) * 3, (0.5,) * 3, 0, False), ("cat", "dog"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), tiny.parameters(), strict=True))


def test_a_missing_folder_for_temporary_files_is_one_sentence(no_tmpdir):
    with pytest.raises(OutputError, match=r"TMPDIR.*cannot be written to: No such file"), temporary_folder():
        pass


def test_weights_that_do_not_fit_on_the_disk_are_one_sentence(tmp_path):
    with pytest.raises(OutputError, match=r"cannot be written to: .*No space left"), writing(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_folder_that_a_killed_run_was_writing_is_removed(tmp_path):
    (tmp_path / f"{LEFTOVER}a").mkdir()
    (tmp_path / f"{LEFTOVER}a" / "model.safetensors").touch()
    (tmp_path / f"{LEFTOVER}b").touch()
    (tmp_path / f"{LEFTOVER}c").symlink_to(tmp_path.parent)
    with RunFolder(tmp_path).locked():
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
