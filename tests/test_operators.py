"""Interactions and what they prepare: closed forms, and the twin that autograd makes."""

import pytest
import torch
import torch.nn.functional as F
from convolutions import CONVOLUTIONS, IMAGE, build, near_copies
from torch import nn
from torch.nn.utils import prune

from timm_ebl.energy.interaction import Interaction
from timm_ebl.kernels.operator import AutogradOperator
from timm_ebl.models.interactions import AveragePooled, ConvInteraction, DenseInteraction, EmptyInteraction


def cases():
    double = {"dtype": torch.float64}
    found = {name: (*case, double, (2, *IMAGE)) for name, case in CONVOLUTIONS.items()}
    found["no bias"] = ConvInteraction, (2, 3), double | {"bias": False}, (2, *IMAGE)
    found["dense, of maps"] = DenseInteraction, (12, 5), double, (3, 2, 2)
    found["dense, of vectors"] = DenseInteraction, (12, 5), double, (12,)
    found["dense, no bias"] = DenseInteraction, (12, 5), double | {"bias": False}, (3, 2, 2)
    found["empty"] = EmptyInteraction, (), {}, (3, 2, 2)
    return found


CASES = cases()


class Case:
    """An interaction with its operator, the twin of that, and states of two copies, ``(6, ..)``."""

    def __init__(self, name, generator):
        kind, arguments, options, sample = CASES[name]
        self.interaction = build(kind, arguments, generator, **options)
        self.lower = near_copies((3, *sample), 0.3, generator)
        self.upper = near_copies((3, *self.interaction.shape(torch.Size(sample))), 0.3, generator)
        self.fast = self.interaction.operator(self.lower[:3].shape)
        self.twin = AutogradOperator(self.interaction.drive, self.interaction.tensors())


@pytest.fixture(params=CASES)
def case(request, generator):
    return Case(request.param, generator)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def assert_same(fast, twin, lower, upper, routes):
    """Two operators that agree along a route: the drive, the feedback, the coupling and its gradients."""
    assert_close(fast.drive(lower, routes[0]).value, twin.drive(lower, routes[1]).value)
    assert_close(fast.feedback(upper, routes[0]), twin.feedback(upper, routes[1]))
    value, gradients = fast.coupling(lower, upper, routes[0])
    twins_value, expected = twin.coupling(lower, upper, routes[1])
    assert_close(value, twins_value)
    assert len(gradients) == len(expected)
    for gradient, twins in zip(gradients, expected, strict=True):
        assert_close(torch.zeros(()) if gradient is None else gradient, torch.zeros(()) if twins is None else twins)


class Squared(nn.Module, Interaction):
    """A kind of the user's own, which is not linear: ``drive(s) = (W s)^2``."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))

    def shape(self, lower):
        return torch.Size([4])

    def drive(self, lower):
        return (lower.flatten(1) @ self.W.T) ** 2


# Closed forms


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_kind_with_a_shape_and_a_drive_alone_has_an_operator(generator, mode):
    interaction, W = Squared(), Squared().W.detach()
    with mode():
        s, other = torch.rand(2, 5, 2, 3, generator=generator, dtype=torch.float64)
        o = torch.rand(5, 4, generator=generator, dtype=torch.float64)
        operator = interaction.operator(s.shape)
        drive = operator.drive(s)
        potential, change = s.flatten(1) @ W.T, (other - s).flatten(1) @ W.T
        assert_close(drive.value, potential**2)
        assert_close(operator.feedback(o, drive.route), ((2 * potential * o) @ W).view_as(s))
        held = potential**2 + 2 * potential * change
        assert_close(operator.drive(other, drive.route).value, held)
        assert_close(operator.changes().drive(other - s, drive.route).value, 2 * potential * change)
        value, (gradient,) = operator.coupling(s, o, drive.route)
        assert_close(value, (o * potential**2).sum())
        assert_close(gradient, (2 * potential * o).T @ s.flatten(1))
        both = operator.pair().drive(torch.cat([s, other]), drive.route)
        assert_close(both.value, torch.cat([potential**2, held]))
    interaction.W.requires_grad_(False)
    assert operator.coupling(s, o, drive.route)[1] == (None,)


def test_a_feedback_is_a_partial_derivative(generator):
    """Where autograd follows several sweeps, the upper layer has been made of the lower one."""
    interaction, W = Squared(), Squared().W.detach()
    s = torch.rand(5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    o = (s[:, :4] + 1).exp()
    potential = s @ W.T
    found = interaction.operator(s.shape).feedback(o, s)
    expected = (2 * potential * o) @ W
    assert_close(found, expected)
    assert_close(
        *(torch.autograd.grad(feedback.sin().sum(), s, retain_graph=True)[0] for feedback in (found, expected))
    )


def test_a_convolution_pools_and_adds_the_bias_of_each_channel(generator):
    interaction = ConvInteraction(2, 3, dtype=torch.float64)
    lower = torch.rand(2, 2, 6, 6, generator=generator, dtype=torch.float64)
    convolved = F.conv2d(lower, interaction.weight, padding=1)
    windows = torch.stack([convolved[..., i::2, j::2] for i in (0, 1) for j in (0, 1)])
    bias = interaction.bias.view(-1, 1, 1)
    assert_close(interaction.drive(lower), windows.amax(0) + bias)
    average = AveragePooled(2, 3, dtype=torch.float64)
    average.load_state_dict(interaction.state_dict())
    assert_close(average.drive(lower), windows.mean(0) + bias)
    plain = ConvInteraction(2, 3, pool=1, stride=2, dtype=torch.float64)
    plain.load_state_dict(interaction.state_dict())
    assert_close(plain.drive(lower), windows[0] + bias)


def test_a_dense_interaction_flattens_multiplies_and_adds_the_bias(generator):
    interaction = DenseInteraction(12, 5, dtype=torch.float64)
    lower = torch.rand(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    expected = torch.einsum("of,bf->bo", interaction.weight, lower.reshape(4, 12)) + interaction.bias
    assert_close(interaction.drive(lower), expected)


def test_a_held_route_picks_the_same_positions_of_another_state(generator):
    interaction = ConvInteraction(2, 3, dtype=torch.float64)
    first, second = torch.rand(2, 4, 2, 8, 8, generator=generator, dtype=torch.float64)
    operator = interaction.operator(first.shape)
    route = operator.drive(first).route
    held = operator.drive(second, route)
    unpooled = F.conv2d(second, interaction.weight, interaction.bias, padding=1)
    for sample, channel, row, column in ((0, 0, 0, 0), (1, 2, 3, 1), (3, 1, 2, 2)):
        position = int(route[sample, channel, row, column])
        expected = unpooled[sample, channel].flatten()[position]
        assert_close(held.value[sample, channel, row, column], expected)
    assert (held.value <= operator.drive(second).value + 1e-12).all()
    assert_close(operator.drive(first, route).value, operator.drive(first).value)


def test_initial_parameters_fill_their_intervals(generator):
    interaction = ConvInteraction(16, 64)
    interaction.initialise(0.6, 0.5, generator)
    root = (16 * 9) ** 0.5
    for parameter, bound in ((interaction.weight, 0.6 / root), (interaction.bias, 0.5 / root)):
        assert 0.9 * bound < parameter.abs().max() <= bound
        assert abs(float(parameter.detach().mean())) < 0.2 * bound


@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": 0}, {"pool": 0}, {"stride": 0}, {"pool": 1.5}])
def test_sizes_that_make_no_convolution_are_refused(options):
    with pytest.raises(ValueError, match="kernel_size is an odd whole number"):
        ConvInteraction(2, 3, **options)


def test_parameters_keep_their_names():
    assert [*ConvInteraction(2, 3).state_dict()] == [*DenseInteraction(2, 3).state_dict()] == ["weight", "bias"]
    assert [*ConvInteraction(2, 3, bias=False).state_dict()] == ["weight"]


# The twin of autograd, 64 bits


def test_the_drive_has_the_announced_shape(case):
    sample = case.interaction.shape(case.lower.shape[1:])
    assert case.interaction.drive(case.lower).shape == case.fast.drive(case.lower).value.shape == (6, *sample)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_the_operator_of_single_states_is_its_twin(case, mode):
    first, second = case.lower.chunk(2)
    upper = case.upper[:3]
    with mode():
        fast, twin = case.interaction.operator(first.shape), case.twin
        drives = fast.drive(first), twin.drive(first)
        assert_close(drives[0].value, drives[1].value)
        routes = drives[0].route, drives[1].route
        assert_same(fast, twin, first, upper, routes)
        assert_same(fast, twin, second, upper, routes)


@pytest.mark.parametrize("shared", [True, False], ids=["one route", "a route for each copy"])
@torch.no_grad()
def test_the_operator_of_a_pair_is_its_twin(case, shared):
    fast, twin, upper = case.fast.pair(), case.twin.pair(), torch.cat([-case.upper[:3], case.upper[3:]])
    assert_close(fast.drive(case.lower).value, twin.drive(case.lower).value)
    routes = [operator.drive(case.lower).route for operator in (fast, twin)]
    if shared:
        routes = [operator.drive(case.lower[:3]).route for operator in (case.fast, case.twin)]
    assert_same(fast, twin, case.lower, upper, routes)


@torch.no_grad()
def test_the_operator_of_changes_is_its_twin(case):
    first, second = case.lower.chunk(2)
    routes = [operator.drive(first).route for operator in (case.fast, case.twin)]
    assert_same(case.fast.changes(), case.twin.changes(), second - first, case.upper[3:] - case.upper[:3], routes)
    held = [case.fast.drive(lower, routes[0]).value for lower in (first, second)]
    assert_close(case.fast.changes().drive(second - first, routes[0]).value, held[1] - held[0])


@torch.no_grad()
def test_a_feedback_may_be_changed(case):
    route = case.fast.drive(case.lower[:3]).route
    for operator, upper in (
        (case.fast, case.upper[:3]),
        (case.fast.pair(), case.upper),
        (case.fast.changes(), case.upper[:3]),
    ):
        before, given = operator.feedback(upper, route), upper.clone()
        expected = before.clone()
        before.fill_(torch.nan)
        assert_close(operator.feedback(upper, route), expected)
        assert_close(upper, given)


def test_an_operator_made_with_autograd_is_differentiable(case):
    """``<s', feedback(o)>`` has the gradients of the coupling: of feedback in the parameters, of both in the states."""
    lower, upper = case.lower[:3].requires_grad_(), case.upper[:3].requires_grad_()
    drive = case.fast.drive(lower)
    feedback = case.fast.feedback(upper, drive.route)
    tensors = case.interaction.tensors()
    if not tensors:
        return
    coupling = (drive.value * upper).sum()
    of_drive = torch.autograd.grad(coupling, [lower, upper, *tensors], retain_graph=True)
    assert_close(feedback, of_drive[0])
    assert_close(of_drive[2:], case.fast.coupling(lower, upper, drive.route)[1])
    again = torch.autograd.grad((feedback * lower).sum(), [upper, tensors[0]])
    bias = 0 if len(tensors) == 1 else tensors[1].view(-1, *[1] * (upper.ndim - 2))
    assert_close(again, (of_drive[1] - bias, of_drive[2]))


def test_of_pruned_weights_the_operator_has_what_pruning_leaves(generator):
    for interaction, sample in ((ConvInteraction(2, 3), (2, 6, 6)), (DenseInteraction(8, 3), (2, 2, 2))):
        lower = torch.rand(4, *sample, generator=generator)
        prune.l1_unstructured(interaction, "weight", 0.5)
        with torch.no_grad():
            interaction.weight_orig.mul_(2)
            operator = interaction.operator(lower.shape)
            expected = operator.drive(lower).value
            interaction.weight_orig.mul_(interaction.weight_mask)
            prune.remove(interaction, "weight")
            interaction.weight.data = interaction.weight.data * 1
            torch.testing.assert_close(interaction.operator(lower.shape).drive(lower).value, expected)
        assert (interaction.weight == 0).float().mean() == 0.5
