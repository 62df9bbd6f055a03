"""Gradients of the rules in 32 and in 16 bits, against those in 64."""

import copy

import pytest
import torch
import torch.nn.functional as F

from timm_ebl import PCN, Minimizer, create_rule, list_rules
from timm_ebl.kernels import convolution
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("network", ["dchn", "pcn"])
@pytest.mark.parametrize("name", ["p-ep", "n-ep", "c-ep", "ep"])
def test_a_network_of_16_bits_feels_a_nudge_that_they_would_lose(make_dchn, generator, network, name, dtype):
    if network == "dchn":
        model = make_dchn(widths=(8, 8), in_chans=3, img_size=32, num_classes=10, gains=0.8, dtype=torch.float32)
    else:
        torch.manual_seed(0)
        model = PCN(widths=(8, 16), pools=(2, 2), img_size=32)
    x, y = torch.rand(8, 3, 32, 32, generator=generator), torch.arange(8)
    exact, rough = model.train(), copy.deepcopy(model).to(dtype)

    def step(model, x):
        loss = F.cross_entropy(model(x), y) if name == "ep" else create_rule(name, beta=0.02)(model, x, y).loss
        return [gradient.double() for gradient in torch.autograd.grad(loss, list(model.parameters()))]

    for found, expected in zip(step(rough, x.to(dtype)), step(exact, x), strict=True):
        assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.98
        assert float(found.norm()) == pytest.approx(float(expected.norm()), rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_gradient_in_the_input_of_a_pcn_is_that_of_32_bits(monkeypatch, dtype):
    monkeypatch.setattr(convolution, "_packs", lambda *_: False)  # as on a GPU
    torch.manual_seed(0)
    model = PCN(widths=(8, 16), pools=(2, 2), img_size=32).train()
    x, weights = torch.rand(3, 3, 32, 32, requires_grad=True), torch.tensor([1, 1e-4, 1e-6])

    def gradient():
        losses = F.cross_entropy(model(x), torch.arange(3), reduction="none")
        return torch.autograd.grad((losses * weights).sum(), x)[0]

    expected = gradient()
    with torch.autocast("cpu", dtype):
        found = gradient()
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 1e-3 * other.norm()


def test_an_empty_batch_has_a_gradient_in_half_precision(wide):
    model, x, _ = wide
    with torch.autocast("cpu", torch.float16):
        model.float()(x[:0]).sum().backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_precisions_are_compared_from_the_command_line(capsys):
    main(["--batch-size", "2", "--rules", "c-ep", "tbp"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("c-ep", "tbp"))]
    assert [row[0] for row in rows] == ["c-ep", "c-ep", "tbp"]
    for row in rows:
        cosines = [float(cell) for cell in row if len(cell.lstrip("-")) == 5]
        assert len(cosines) == 10
        assert max(map(abs, cosines)) <= 1
