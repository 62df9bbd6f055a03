import functools
import os
import shutil
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import timm_ebl  # noqa: F401 (before torch is loaded: how its threads wait)

# isort: split
import huggingface_hub.constants
import pytest
import runs
import timm
import torch
from dense import DenseHopfield
from hub_server import TOKEN, Hub, Repo
from published_runs import write_images, write_run
from readmes import MY_MODULE

from timm_ebl import DCHN
from timm_ebl.data import requests as connection
from timm_ebl.errors import Interrupted
from timm_ebl.kernels import winograd
from timm_ebl.relaxation import order
from timm_ebl.rules import rule
from timm_ebl.training.checkpoint import Checkpoints


def pytest_configure(config):
    """Random examples: the same few in every run of the suite, many under ``-m fuzz``."""
    try:
        from hypothesis import HealthCheck, Phase, settings
    except ImportError:  # as on a machine that runs the GPU's tests alone
        return
    few = settings(
        max_examples=60,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    settings.register_profile("few", few)
    settings.register_profile("many", few, max_examples=1200)
    settings.load_profile("many" if config.option.markexpr == "fuzz" else "few")


@pytest.fixture(autouse=True)
def signals():
    """Ctrl-C and the end of a terminal are not ignored, as they are in a job that a shell starts in the background."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def train_until(monkeypatch):
    """Trains until so many batches, evaluations included, are done and a signal comes; returns the interruption."""

    def train_until(calls, *command):
        original, left = Checkpoints.between_batches, iter(range(calls - 1, -1, -1))

        def between_batches(self):
            if next(left, None) == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "between_batches", between_batches)
            with pytest.raises(Interrupted) as stop:
                runs.train(*command)
        return stop.value

    return train_until


@pytest.fixture
def forgotten(monkeypatch):
    """What examples and modules of a user register is gone after a test; timm alone goes on to list their models."""
    for registry in (rule.RULES, order._ORDERS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in ("my_module", "outside"):
        monkeypatch.delitem(sys.modules, module, raising=False)


@pytest.fixture
def my_module(tmp_path, monkeypatch, forgotten):
    """A folder with the module of the guide's example, to work in; it has not been imported yet."""
    monkeypatch.delitem(timm.models._registry._model_entrypoints, "my_model", raising=False)
    (tmp_path / "my_module.py").write_text(MY_MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def make_dchn():
    """Builds a DCHN small enough for float64 oracles, with states well inside and at both ends of [0, 1]."""

    def make(seed=0, dtype=torch.float64, **kwargs):
        options = {"widths": (4, 5, 6, 7), "num_classes": 3, "in_chans": 2, "img_size": 16, "gains": 1.5} | kwargs
        model = DCHN(**options, dtype=dtype)
        model.init_weights(torch.Generator().manual_seed(seed))
        return model

    return make


@pytest.fixture
def make_live(make_dchn):
    """Builds a DCHN with units strictly inside [0, 1] in every layer, so that every parameter has a gradient."""
    return functools.partial(make_dchn, seed=3, gains=0.5, bias_gain=1.5)


@pytest.fixture
def tiny(request):
    """A small network of the registry: a DCHN, unless a test asks for another one."""
    torch.manual_seed(0)
    return timm.create_model(getattr(request, "param", "dchn_tiny_cifar10"))


@pytest.fixture
def served_everywhere(monkeypatch):
    """Every convolution that Winograd's algorithm can compute is made by it, of narrow layers too."""
    monkeypatch.setattr(winograd, "_WIDE", 0)
    monkeypatch.setattr(winograd, "_FEWEST_TILES", 0)


@pytest.fixture
def batch(generator):
    """Images ``(6, 2, 16, 16)`` and labels in 0 .. 2, float64."""
    x = torch.randn(6, 2, 16, 16, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture
def dense():
    """A dense network, five inputs; every unit is strictly inside [0, 1] at its free state."""
    model = DenseHopfield()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hidden = model.relax(x).state[0]
    assert hidden.min() > 0.01
    assert hidden.max() < 0.99
    return model, x


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub on this machine, which the clients take for the real one; with a token, and without old caches."""
    import datasets

    with Hub() as hub:
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": False,
            "HF_DATASETS_CACHE": tmp_path / "datasets",
        }.items():
            monkeypatch.setattr(datasets.config, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(connection, "PAUSES", (0.01, 0.01))
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of three easy classes, for runs to learn."""
    return runs.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of noise, for runs that are published."""
    return write_images(tmp_path_factory.mktemp("images") / "noise")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images):
    """The folder of a run that has ended, for all tests of a module to read."""
    return write_run(tmp_path_factory.mktemp("run") / "run", images)


@pytest.fixture
def run(tmp_path, finished):
    """A copy of that run, for a test to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def net(tmp_path, finished):
    """The two files of a trained network that timm loads, for a test to spoil."""
    (tmp_path / "net").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "net" / name).write_bytes((finished / name).read_bytes())
    return tmp_path / "net"


@pytest.fixture
def on_hub(hub, net):
    """The same two files in a repository."""
    files = {path.name: path.read_bytes() for path in net.iterdir()}
    hub.repos["models", "me/net"] = Repo(commits=[files])
    return hub
