"""Gradients of the rules in 32 and in 16 bits, against those in 64."""

import pytest
import torch

from timm_ebl import Minimizer, list_rules
from timm_ebl.rules.rule import rule_options
from timm_ebl.tools.gradients import layer_cosines, main, rule_gradients

CASES = [(name, beta) for name in list_rules() for beta in ((0.1, 0.25) if "beta" in rule_options(name) else (None,))]


@pytest.fixture
def wide(make_dchn, generator):
    """A network of sixteen channels and more at the start of training, where lower layers hardly feel the nudge."""
    model = make_dchn(widths=(16, 24, 32, 32), in_chans=3, img_size=32, num_classes=10, gains=0.8, sweeps=8, omega=1.5)
    return model, torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8)


@pytest.mark.parametrize(("name", "beta"), CASES)
def test_a_rules_gradient_is_that_of_64_bits_in_32_and_near_it_in_16(wide, name, beta):
    model, x, y = wide
    options = {} if beta is None else {"beta": beta}
    if name == "cl":  # it follows its routes, of which more over-relaxation lets rounding change some
        options["perturbed"] = Minimizer(order="backward", sweeps=2, omega=1.2)
    expected = rule_gradients(model, x.double(), y, name, **options)
    model.float()
    exact, half, brain = (
        layer_cosines(rule_gradients(model, x, y, name, precision, **options), expected)
        for precision in (None, torch.float16, torch.bfloat16)
    )
    assert min(exact) > 1 - 1e-6
    assert min(half) > 0.95
    assert min(brain) > 0.8
    assert min(brain[1:]) > 0.9


def test_precisions_are_compared_from_the_command_line(capsys):
    main(["--batch-size", "2", "--rules", "c-ep", "tbp"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("c-ep", "tbp"))]
    assert [row[0] for row in rows] == ["c-ep", "c-ep", "tbp"]
    for row in rows:
        cosines = [float(cell) for cell in row if len(cell.lstrip("-")) == 5]
        assert len(cosines) == 10
        assert max(map(abs, cosines)) <= 1
