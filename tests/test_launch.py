"""What the launcher was asked for runs, or is refused."""

import pytest
import torch
from accelerate.state import AcceleratorState

from timm_ebl.errors import ConfigError
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.launch import start_accelerator


@pytest.fixture
def launched(monkeypatch):
    """Starts an accelerator under the variables that a launcher leaves."""

    def launch(config=None, **environment):
        for name, value in ({"ACCELERATE_USE_CPU": "1"} | environment).items():
            monkeypatch.setenv(name, value)
        AcceleratorState._reset_state(reset_partial_state=True)
        return start_accelerator(config or TrainConfig())

    yield launch
    AcceleratorState._reset_state(reset_partial_state=True)


def test_16_bits_that_a_cpu_does_not_compute_are_refused_whoever_asks(launched):
    for call in (
        lambda: launched(TrainConfig(mixed_precision="fp16")),
        lambda: launched(ACCELERATE_MIXED_PRECISION="fp16"),
    ):
        with pytest.raises(ConfigError, match="Nothing is computed in fp16 on a cpu: take --mixed-precision bf16"):
            call()
    with launched(ACCELERATE_MIXED_PRECISION="bf16").autocast():
        assert torch.ones(1, 1).mm(torch.ones(1, 1)).dtype == torch.bfloat16
    assert launched(TrainConfig(mixed_precision="no"), ACCELERATE_MIXED_PRECISION="fp16").mixed_precision == "no"


@pytest.mark.parametrize(("precision", "words"), [("fp4", "Nothing is computed in fp4"), ("fp8", "accelerate cannot")])
def test_a_precision_that_nothing_computes_is_one_sentence(launched, precision, words):
    with pytest.raises(ConfigError, match=words) as refusal:
        launched(ACCELERATE_MIXED_PRECISION=precision)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "a single one runs"),  # accelerate launch
        ({"ACCELERATE_USE_CPU": "0", "WORLD_SIZE": "2"}, "2 processes were started"),  # torchrun
        ({"ACCELERATE_USE_CPU": "0", "OMPI_COMM_WORLD_SIZE": "3"}, "3 processes were started"),  # mpirun
    ],
)
def test_processes_that_were_asked_for_and_do_not_run_are_refused(launched, monkeypatch, environment, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"Several processes were asked for, but {words}.*torchrun --nproc_per_node"):
        launched(**environment)


def test_one_process_is_no_less_than_was_asked_for(launched):
    assert launched(WORLD_SIZE="1", MASTER_ADDR="node1").num_processes == 1
    assert launched(ACCELERATE_MIXED_PRECISION="no", WORLD_SIZE="1").num_processes == 1
