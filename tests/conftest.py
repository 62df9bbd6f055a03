import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from dense import DenseHopfield

from timm_ebl import DCHN


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
