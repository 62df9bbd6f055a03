"""What a forward pass multiplies, counted as PyTorch counts."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from timm_ebl import DCHN, Minimizer


def plain_answer(model, x):
    """Two asynchronous sweeps of two hidden layers from the feed-forward start, each product made once it is needed."""
    first, second, head = model.interactions

    def drive(layer, lower):
        return F.max_pool2d(F.conv2d(lower, layer.weight, layer.bias, padding=1), 2, return_indices=True)

    def feedback(upper, route, lower):
        unpooled = F.max_unpool2d(upper, route, 2, output_size=lower.shape[2:])
        return F.conv_transpose2d(unpooled, second.weight, padding=1)

    drive1, _ = drive(first, x)
    s1 = drive1.clamp(0, 1)
    drive2, route = drive(second, s1)
    s2 = drive2.clamp(0, 1)
    o = head.bias + s2.flatten(1) @ head.weight.t()
    for sweep in range(2):
        s1 = (drive1 + feedback(s2, route, s1)).clamp(0, 1)
        if sweep:
            o = head.bias + s2.flatten(1) @ head.weight.t()
        drive2, route = drive(second, s1)
        s2 = (drive2 + (o @ head.weight).view_as(s2)).clamp(0, 1)
    return head.bias + s2.flatten(1) @ head.weight.t()


def test_they_are_those_of_the_same_answer_written_plainly():
    torch.manual_seed(0)
    model = DCHN((4, 6), img_size=16, sweeps=2, omega=1.0, dtype=torch.float64)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = plain_answer(model, x)
    torch.testing.assert_close(output, model(x))
    assert 3 * model.flops() == counter.get_total_flops()


@pytest.mark.parametrize("options", [{}, {"num_classes": 0}, {"pooling": "average", "order": "backward", "sweeps": 3}])
def test_they_are_those_of_a_forward_pass_in_64_bits(make_dchn, batch, options):
    model = make_dchn(**options)  # float64 is packed nowhere
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch[0])
    assert 6 * model.flops() == counter.get_total_flops() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_type_mode_hooks_and_compiler_change_nothing(make_dchn, dtype):
    expected, model, called = make_dchn().flops(), make_dchn(dtype=dtype, compiled=True).eval(), []
    model.layers[0].register_forward_hook(lambda *_: called.append(1))
    for mode in (nullcontext(), torch.no_grad(), torch.inference_mode()):
        with mode:
            assert model.flops() == expected
    assert not called
    assert torch.backends.mkldnn.is_available() == torch._C._get_mkldnn_enabled()


def test_every_sweep_costs_the_same(make_dchn):
    model, found = make_dchn(), []
    for sweeps in (5, 6, 7):
        model.minimizer = Minimizer(sweeps=sweeps)
        found.append(model.flops())
    assert found[2] - found[1] == found[1] - found[0] > 0


def test_with_a_tolerance_there_is_no_such_number(make_dchn):
    with pytest.raises(ValueError, match=r"With a tolerance \(0.001\) every image takes a number of sweeps of its own"):
        make_dchn(tolerance=1e-3).flops()
