"""Winograd's algorithm: the convolution, its transpose and its gradient, in fewer multiplications."""

import pytest
import timm
import torch
import torch.nn.functional as F

from timm_ebl import create_rule
from timm_ebl.kernels.packed import Packed
from timm_ebl.kernels.winograd import Winograd, is_served
from timm_ebl.tools.gradients import gradients

SHAPES = {
    "one tile": (1, 1, 1, 4, 4),
    "not square": (3, 4, 5, 4, 12),
    "more images than are taken at once": (70, 3, 2, 12, 8),
    "wide": (2, 128, 192, 4, 4),
}
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN, and convolves by itself"
)


@pytest.fixture(params=SHAPES)
def case(request, generator):
    """``(lower, weight, bias, upper)``, float64."""
    batch, below, above, height, width = SHAPES[request.param]
    shapes = ((batch, below, height, width), (above, below, 3, 3), (above,), (batch, above, height, width))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_in_64_bits_it_is_the_convolution(case, layout):
    lower, weight, bias, upper = case
    weight.requires_grad_()
    expected = F.conv2d(lower, weight, bias, padding=1)
    (gradient,) = torch.autograd.grad((upper * expected).sum(), weight)
    winograd = Winograd(weight)
    lower, upper = (x.contiguous(memory_format=layout) for x in (lower, upper))
    torch.testing.assert_close(winograd.up(lower, bias), expected, atol=1e-12, rtol=1e-12)
    down = F.conv_transpose2d(upper, weight, padding=1)
    torch.testing.assert_close(winograd.down(upper), down, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(winograd.gradient(lower, upper), gradient, atol=1e-11, rtol=1e-12)


def test_in_32_bits_it_is_exact_to_some_roundings(case):
    lower, weight, bias, upper = case
    single = Winograd(weight.float())
    found = [
        single.up(lower.float(), bias.float()),
        single.down(upper.float()),
        single.gradient(lower.float(), upper.float()),
    ]
    exact = Winograd(weight)
    expected = [exact.up(lower, bias), exact.down(upper), exact.gradient(lower, upper)]
    for a, b, bound in zip(found, expected, (2e-6, 2e-6, 4e-6), strict=True):
        assert (a - b).norm() <= bound * b.norm()


def test_it_serves_wide_layers_with_the_kernel_and_the_batch_that_it_is_made_for():
    def served(upper=256, lower=128, kernel=3, stride=1, padding=1, batch=8, image=(16, 16)):
        return is_served(
            torch.empty(upper, lower, kernel, kernel), [stride, stride], [padding, padding], [batch, lower, *image]
        )

    if not torch.backends.mkl.is_available():
        assert not served()
        pytest.skip("PyTorch is built without MKL, and its matrix products may be slower than its convolutions")
    assert served()
    assert served(512, 512, batch=16, image=(4, 8))
    assert not served(512, 512, batch=15, image=(4, 8))
    assert not served(128, 128)
    assert not served(128, 3)
    assert not served(kernel=5, padding=2)
    assert not served(padding=0)
    assert not served(stride=2)
    assert not served(image=(16, 18))


@needs_onednn
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch is built without MKL")
@torch.no_grad()
def test_the_papers_network_is_served_where_its_layers_are_wide():
    model, x = timm.create_model("dchn_cifar10").eval(), torch.randn(8, 3, 32, 32)
    lowers = [x.shape, *model.state_shapes(x)][:4]

    def engines():
        return [type(part.operator(lower).engine) for part, lower in zip(model.interactions, lowers, strict=False)]

    assert engines() == [Packed, Winograd, Winograd, Packed]
    with torch.autocast("cpu", torch.bfloat16):
        assert Winograd not in engines()


@needs_onednn
@pytest.mark.parametrize("name", ["n-ep", "c-ep", "c-cpl", "tbp", "rbp"])
def test_the_update_is_that_of_plain_convolutions(make_dchn, batch, served_everywhere, name):
    model, (x, y) = make_dchn(dtype=torch.float32), batch
    rule = create_rule(name)
    found = gradients(model, lambda: rule(model, x.float(), y).loss.backward())
    with torch.backends.mkldnn.flags(enabled=False):
        expected = gradients(model, lambda: rule(model, x.float(), y).loss.backward())
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
