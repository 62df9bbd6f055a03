"""Products of two copies by mean and difference: exact in 64 bits, and in 16 where plain products are not."""

import pytest
import torch
from timm_ebl.kernels.products import Products

from timm_ebl import ConvInteraction, Minimizer, list_rules
from timm_ebl.rules.rule import rule_options
from timm_ebl.tools.gradients import layer_cosines, main, rule_gradients

CASES = [(name, beta) for name in list_rules() for beta in ((0.1, 0.25) if "beta" in rule_options(name) else (None,))]


@pytest.fixture
def convolution(generator):
    interaction = ConvInteraction(8, 12, dtype=torch.float64)
    interaction.initialise(1.0, 0.5, generator)
    return interaction


def near_copies(shape, apart, generator):
    """Two copies of a batch of states, a small step apart."""
    first = torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.cat([first, first + apart * torch.randn(shape, generator=generator, dtype=torch.float64)])


def difference(copies):
    return torch.sub(*copies.double().chunk(2))


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def test_in_64_bits_the_products_of_copies_are_those_of_states(convolution, generator):
    lower, upper = (near_copies((3, channels, 6, 6), 0.1, generator) for channels in (8, 12))
    plain = Products(convolution.weight, convolution.bias, [1, 1], lower.shape)
    copies = plain.of_copies(2)
    assert copies.by_difference
    assert not plain.by_difference
    torch.testing.assert_close(copies.up(lower), plain.up(lower), atol=1e-13, rtol=0)
    torch.testing.assert_close(copies.down(upper), plain.down(upper), atol=1e-13, rtol=0)
    torch.testing.assert_close(copies.gradient(lower, upper), plain.gradient(lower, upper), atol=1e-11, rtol=0)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("apart", [1e-3, 1e-6])
@torch.no_grad()
def test_16_bits_keep_the_digits_of_a_difference(convolution, generator, precision, apart):
    lower, upper = (near_copies((3, channels, 6, 6), apart, generator) for channels in (8, 12))
    exact = Products(convolution.weight, convolution.bias, [1, 1], lower.shape).of_copies(2)
    signed = torch.cat([-upper[:3], upper[3:]])  # the contrast of two energies
    expected = [difference(exact.up(lower)), difference(exact.down(upper)), exact.gradient(lower, signed)]

    convolution.float()
    lower, upper, signed = lower.float(), upper.float(), signed.float()
    with torch.autocast("cpu", precision):
        rough = Products(convolution.weight, convolution.bias, [1, 1], lower.shape)
        copies = rough.of_copies(2)
    found = [difference(copies.up(lower)), difference(copies.down(upper)), copies.gradient(lower, signed).double()]
    for part, exact_part in zip(found, expected, strict=True):
        assert relative(part, exact_part) < 0.01 + 1e-7 / apart
    assert relative(difference(rough.up(lower)), expected[0]) > 0.1


@torch.no_grad()
def test_two_copies_in_16_bits_choose_one_route(generator):
    interaction = ConvInteraction(8, 12)
    lower = near_copies((3, 8, 6, 6), 1e-6, generator).float()
    with torch.autocast("cpu", torch.bfloat16):
        products = Products(*interaction.tensors(), [1, 1], lower.shape).of_copies(2)
    drive = interaction.drive(lower, None, products)
    assert len(drive.route) == 3
    chosen = products.up(lower).flatten(2).gather(2, drive.route.repeat(2, 1, 1, 1).flatten(2))
    torch.testing.assert_close(drive.value.flatten(2), chosen, rtol=0, atol=0)


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
