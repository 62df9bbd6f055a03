"""The drift of a free state in the contrast of a one-sided rule."""

from dataclasses import replace

import pytest
import timm
import torch

from timm_ebl import PAPER, Minimizer, create_rule
from timm_ebl.tools import drift as tool
from timm_ebl.tools.drift import drift
from timm_ebl.tools.gradients import gradients, true_gradient

PERTURBED = Minimizer(sweeps=8, omega=1.0)


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = timm.create_model("dchn_tiny_mnist", widths=(3, 4, 5, 6), gains=0.8, num_classes=3).double()
    return model, torch.randn(4, 1, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 0])


def test_the_drift_is_what_the_free_state_does_by_itself_in_as_many_sweeps(network):
    """Its contrast with itself, relaxed freely for as long as the perturbed state, over beta."""
    model, x, y = network
    beta, free = 0.25, replace(PAPER, sweeps=4)

    def by_itself():
        start = model.relax(x, minimizer=free)
        later = model.relax(x, start, minimizer=PERTURBED)
        ((model.energy(x, later) - model.energy(x, start)).mean() / beta).backward()

    def whole():
        options = {"free": free, "perturbed": PERTURBED, "beta": beta, "linear_response": False, "settle": False}
        create_rule("p-ep", companion=False, **options)(model, x, y).loss.backward()

    own, total = (torch.cat(gradients(model, step)) for step in (by_itself, whole))
    share = own @ own / (own @ own + (total - own) @ (total - own))
    found = drift(model, x, y, total, "p-ep", free, perturbed=PERTURBED, beta=beta)
    assert found.share == pytest.approx(float(share), 1e-6)
    assert found.cosine == pytest.approx(1)
    assert 0.05 < share < 0.99


@pytest.mark.parametrize("name", tool.RULES)
def test_at_rest_there_is_no_drift(network, name):
    true = torch.cat(true_gradient(*network, PAPER))
    found = drift(*network, true, name, replace(PAPER, sweeps=400), perturbed=PERTURBED)
    assert found.residual < 1e-9
    assert found.share < 1e-6
    assert found.cosine == pytest.approx(found.cosine_without, abs=1e-4)


def test_the_command_prints_a_line_for_each_rule_and_number_of_sweeps(capsys):
    options = ["--batch-size", "2", "--rules", "p-ep", "cl", "--free-sweeps", "2", "4", "--threads", "1"]
    tool.main(["--models", "dchn_tiny_fashion_mnist", *options])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(tool.RULES)]
    assert [row[:2] for row in rows] == [["p-ep", "2"], ["p-ep", "4"], ["cl", "2"], ["cl", "4"]]


def test_a_network_without_sweeps_is_refused(capsys):
    with pytest.raises(SystemExit, match="1"):
        tool.main(["--models", "dchn_tiny_mnist", "pcn_vgg5_tiny_mnist", "--batch-size", "1"])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: pcn_vgg5_tiny_mnist: a drift is about the sweeps of a free phase, ")


@pytest.mark.parametrize(
    ("rule", "beta", "sentence"),
    [
        ("p-ep", "-1", "beta is a positive number"),
        ("n-ep", "1.5", "A negative nudge needs beta below 1"),
        ("p-cpl", "1e-6", "rounding leaves a beta of"),
    ],
)
def test_a_strength_that_is_none_for_a_rule_is_refused_before_anything_is_measured(capsys, rule, beta, sentence):
    with pytest.raises(SystemExit, match="2"):
        tool.main(["--rules", "cl", rule, "--beta", beta])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
