"""Trackers get the metrics of every epoch, and one that is not installed is refused before the run."""

import importlib.util

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from runs import arguments, results, train

from timm_ebl.errors import ConfigError
from timm_ebl.training import tracking


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_tracker_is_refused_with_the_extra_that_brings_it(folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf'--log-with {name} needs {name}: pip install "timm-ebl\[{name}\]"'):
        train(*arguments(folder, tmp_path / "run", "--log-with", name))
    assert not (tmp_path / "run").exists()


def test_all_of_none_is_refused(monkeypatch):
    monkeypatch.setattr(tracking, "filter_trackers", lambda *_: [])
    with pytest.raises(ConfigError, match=r"--log-with all finds no tracker"):
        tracking.check_trackers(("all",))


def test_a_tracker_gets_settings_and_metrics(folder, tmp_path, monkeypatch):
    class Recorder(GeneralTracker):
        name, requires_logging_directory, tracker = "recorder", False, None

        def __init__(self):
            super().__init__()
            self.settings, self.logged, self.finished = {}, [], False

        def store_init_configuration(self, values):
            self.settings |= values

        def log(self, values, step=None, **_):
            self.logged.append((step, values))

        def finish(self):
            self.finished = True

    recorder = Recorder()
    monkeypatch.setattr(tracking, "filter_trackers", lambda *_: [recorder])
    train(*arguments(folder, tmp_path / "run", "--log-with", "all"))
    _, metrics, summary = results(tmp_path / "run")
    assert recorder.settings["algo"] == "c-ep"
    assert recorder.settings["epochs"] == 3
    *epochs, (last, test) = recorder.logged
    assert [{"epoch": step, **values} for step, values in epochs] == metrics
    assert (last, test) == (3, {name: summary[name] for name in ("test_error", "best_epoch")})
    assert recorder.finished


def test_a_tracker_that_cannot_start_is_a_sentence(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("api_key not configured (no-tty).\nCall wandb.login()")

    monkeypatch.setattr(tracking, "filter_trackers", lambda *_: [])
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", fail)
    with pytest.raises(
        ConfigError, match=r"--log-with all: the tracker cannot be started \(api_key .* Call wandb.*\)\."
    ):
        tracking.start_trackers(Accelerator(cpu=True), ["all"], tmp_path, {})


def test_tensorboard_writes_into_the_folder_of_the_run(folder, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    train(*arguments(folder, out, "--log-with", "tensorboard"))
    events = EventAccumulator(str(out / "timm_ebl"))
    events.Reload()
    errors = [event.value for event in events.Scalars("held_out_error")]
    assert errors == pytest.approx([epoch["held_out_error"] for epoch in results(out)[1]])
