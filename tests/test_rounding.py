"""Operators in 32 bits, by oneDNN's packed weights and Winograd's algorithm, and in 16 bits: near those of 64."""

import pytest
import torch
import torch.nn.functional as F
from convolutions import CONVOLUTIONS, IMAGE, build, near_copies

from timm_ebl.kernels.packed import Packed
from timm_ebl.kernels.plain import Plain
from timm_ebl.kernels.pooling import AveragePooling
from timm_ebl.kernels.winograd import Winograd
from timm_ebl.models.interactions import AveragePooled, ConvInteraction, DenseInteraction

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN, and convolves by itself"
)


# 32 bits


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def results(operator, lower, upper, routes):
    """A drive, its feedback, and the gradients of a single state, of a pair and of a change."""
    first, change = lower.chunk(2)[0], torch.sub(*lower.chunk(2))
    above = upper[: len(first)]
    pair, changes = operator.pair(), operator.changes()
    return [
        operator.drive(first).value,
        operator.feedback(above, routes),
        *operator.coupling(first, above, routes)[1],
        pair.drive(lower, routes).value,
        pair.feedback(upper, routes),
        *pair.coupling(lower, upper, routes)[1],
        changes.drive(change, routes).value,
        changes.feedback(above, routes),
    ]


def assert_near_64_bits(interaction, lower, upper, bound, engine):
    exact = interaction.operator(lower.shape)
    route = exact.drive(lower.chunk(2)[0]).route
    expected = results(exact, lower, upper, route)
    interaction.float()
    lower, upper = lower.float(), upper.float()
    single = interaction.operator(lower.shape)
    assert type(single.engine) is engine
    found = results(single, lower, upper, route)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < bound
        assert a.ndim < 4 or a.is_contiguous(memory_format=torch.channels_last) or a.shape == interaction.weight.shape


@needs_onednn
@pytest.mark.parametrize("name", CONVOLUTIONS)
@torch.no_grad()
def test_packed_weights_are_exact_to_roundings(name, generator):
    kind, arguments = CONVOLUTIONS[name]
    interaction = build(kind, arguments, generator, dtype=torch.float64)
    lower = near_copies((3, 2, *IMAGE), 0.3, generator)
    upper = near_copies((3, *interaction.shape(lower.shape[1:])), 0.3, generator)
    assert_near_64_bits(interaction, lower, upper, 1e-5, Packed)


@needs_onednn
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch is built without MKL")
@pytest.mark.parametrize("pool", [1, 2, 4])
@pytest.mark.parametrize("kind", [ConvInteraction, AveragePooled])
@torch.no_grad()
def test_winograds_algorithm_is_exact_to_roundings(served_everywhere, kind, pool, generator):
    interaction = build(kind, (5, 4, 3, pool), generator, dtype=torch.float64)
    lower = near_copies((3, 5, 8, 12), 0.3, generator)
    upper = near_copies((3, *interaction.shape(lower.shape[1:])), 0.3, generator)
    assert_near_64_bits(interaction, lower, upper, 1e-5, Winograd)


@needs_onednn
def test_weights_are_packed_without_autograd_alone(monkeypatch):
    interaction, shape = ConvInteraction(2, 3).requires_grad_(False), torch.Size([4, 2, 8, 8])
    assert type(interaction.operator(shape).engine) is Plain
    with torch.no_grad():
        assert type(interaction.operator(shape).engine) is Packed
        with torch.backends.mkldnn.flags(enabled=False):
            assert type(interaction.operator(shape).engine) is Plain
        traced = torch.jit.trace(lambda x: interaction.operator(x.shape).drive(x).value, torch.rand(shape))
        x = torch.rand(2, *shape[1:])
        torch.testing.assert_close(traced(x), interaction.drive(x))
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert type(interaction.operator(shape).engine) is Plain


@needs_onednn
@torch.no_grad()
def test_an_operator_made_in_inference_mode_serves_outside_it(generator):
    interaction = ConvInteraction(2, 3)
    lower, upper = torch.rand(4, 2, 8, 8, generator=generator), torch.rand(4, 3, 4, 4, generator=generator)
    with torch.inference_mode():
        operator = interaction.operator(lower.shape)
        route = operator.drive(lower).route
        expected = operator.feedback(upper, route)
    torch.testing.assert_close(operator.feedback(upper, route), expected, atol=0, rtol=0)


# 16 bits


def difference(copies):
    return torch.sub(*copies.double().chunk(2))


@pytest.mark.parametrize("kind", [ConvInteraction, AveragePooled])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("apart", [1e-3, 1e-6])
@torch.no_grad()
def test_16_bits_keep_the_digits_of_a_difference(kind, precision, apart, generator):
    interaction = build(kind, (8, 12, 3, 1), generator, dtype=torch.float64)
    interaction.pool = 2
    lower, upper = near_copies((3, 8, 6, 6), apart, generator), near_copies((3, 12, 3, 3), apart, generator)
    signed = torch.cat([-upper[:3], upper[3:]])  # the contrast of two energies
    single = interaction.operator(lower.shape)
    exact, route = single.pair(), single.drive(lower[:3]).route
    expected = [
        difference(exact.drive(lower, route).value),
        difference(exact.feedback(upper, route)),
        *exact.coupling(lower, signed, route)[1],
    ]

    interaction.float()
    lower, upper, signed = lower.float(), upper.float(), signed.float()
    with torch.autocast("cpu", precision):
        rough = interaction.operator(lower.shape)
    pair = rough.pair()
    found = [
        difference(pair.drive(lower, route).value),
        difference(pair.feedback(upper, route)),
        *pair.coupling(lower, signed, route)[1],
    ]
    for part, exact_part in zip(found, expected, strict=True):
        assert relative(part, exact_part) < 0.01 + 1e-7 / apart
    plain = [rough.feedback(part, route) for part in upper.chunk(2)]
    assert relative(difference(torch.cat(plain)), expected[1]) > 0.05


@torch.no_grad()
def test_two_copies_in_16_bits_choose_one_route(generator):
    interaction = ConvInteraction(8, 12)
    lower = near_copies((3, 8, 6, 6), 1e-6, generator, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        drive = interaction.operator(lower.shape).pair().drive(lower)
        interaction.pool = 1
        unpooled = interaction.operator(lower.shape).pair().drive(lower).value
    assert len(drive.route) == 3
    chosen = unpooled.flatten(2).gather(2, drive.route.repeat(2, 1, 1, 1).flatten(2))
    torch.testing.assert_close(drive.value.flatten(2), chosen, rtol=0, atol=0)


def test_means_along_a_route_are_summed_in_32_bits(generator):
    unpooled = torch.rand(2, 3, 4, 6, generator=generator).bfloat16()
    found = AveragePooling(2).hold(unpooled, None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), F.avg_pool2d(unpooled.double(), 2), atol=1e-7, rtol=0)


@torch.no_grad()
def test_a_read_out_has_the_bits_of_its_weight_under_autocast(generator):
    interaction, lower = DenseInteraction(12, 5), torch.rand(4, 3, 2, 2, generator=generator)
    expected = interaction.operator(lower.shape).drive(lower).value
    with torch.autocast("cpu", torch.bfloat16):
        operator = interaction.operator(lower.shape)
        torch.testing.assert_close(operator.drive(lower).value, expected, rtol=0, atol=0)
        assert operator.drive(lower.bfloat16()).value.dtype == torch.float32
