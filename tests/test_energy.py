"""Interactions and the energy: definitions, autograd, finite differences, the slow responses."""

import pytest
import responses
import torch
import torch.nn.functional as F

from timm_ebl import Minimizer, Nudged
from timm_ebl.energy.interaction import AveragePooled, ConvInteraction, DenseInteraction, EmptyInteraction
from timm_ebl.kernels.winograd import Winograd
from timm_ebl.relaxation.order import list_orders
from timm_ebl.rules import reference


def interactions():
    double = {"dtype": torch.float64}
    return {
        "convolution": (ConvInteraction(2, 3, **double), (4, 2, 8, 8)),
        "odd image": (ConvInteraction(2, 3, **double), (4, 2, 7, 9)),
        "large kernel and window": (ConvInteraction(2, 3, kernel_size=5, pool=3, **double), (4, 2, 11, 11)),
        "average pooling": (AveragePooled(2, 3, **double), (4, 2, 8, 8)),
        "average pooling, odd image": (AveragePooled(2, 3, kernel_size=5, pool=3, **double), (4, 2, 10, 11)),
        "dense": (DenseInteraction(12, 5, **double), (4, 3, 2, 2)),
        "empty": (EmptyInteraction(), (4, 3, 2, 2)),
    }


@pytest.fixture(params=interactions())
def case(request, generator):
    """An interaction and random states ``(lower, upper)`` of its layers."""
    interaction, shape = interactions()[request.param]
    interaction.initialise(1.5, 0.5, generator)
    lower = torch.rand(shape, generator=generator, dtype=torch.float64)
    upper = torch.rand(4, *interaction.shape(lower.shape[1:]), generator=generator, dtype=torch.float64)
    return interaction, lower, upper


def test_the_drive_has_the_announced_shape(case):
    interaction, lower, upper = case
    assert interaction.drive(lower).value.shape == upper.shape


def test_feedback_is_the_gradient_in_the_lower_layer(case):
    interaction, lower, upper = case
    lower.requires_grad_()
    drive = interaction.drive(lower)
    feedback = interaction.feedback(upper, drive.route, lower.shape)
    expected = torch.zeros_like(lower)
    if upper.numel():
        (expected,) = torch.autograd.grad((upper * drive.value).sum(), lower)
    torch.testing.assert_close(feedback, expected, atol=1e-12, rtol=1e-12)


def test_with_its_route_held_a_drive_changes_linearly(case, generator):
    interaction, lower, _ = case
    route = interaction.drive(lower).route
    other = torch.rand(lower.shape, generator=generator, dtype=torch.float64)
    expected = interaction.drive(other, route).value - interaction.drive(lower, route).value
    torch.testing.assert_close(interaction.change(other - lower, route), expected, atol=1e-12, rtol=1e-12)


def test_the_coupling_of_two_layers_comes_with_its_gradient(case):
    interaction, lower, upper = case
    drive = interaction.drive(lower)
    coupling, gradients = interaction.coupling(lower, upper, drive.route)
    torch.testing.assert_close(coupling, (upper * drive.value).sum(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradients, interaction.gradient(lower, upper, drive.route), atol=1e-12, rtol=1e-12)


def test_gradient_is_that_of_autograd_in_the_parameters(case):
    interaction, lower, upper = case
    drive = interaction.drive(lower)
    gradients = interaction.gradient(lower, upper, drive.route)
    parameters = list(interaction.parameters())
    assert len(gradients) == len(parameters)
    if parameters:
        expected = torch.autograd.grad((upper * drive.value).sum(), parameters)
        torch.testing.assert_close(gradients, expected, atol=1e-12, rtol=1e-12)


def test_a_convolution_pools_and_adds_the_bias_of_each_channel(generator):
    interaction = ConvInteraction(2, 3, dtype=torch.float64)
    lower = torch.rand(2, 2, 6, 6, generator=generator, dtype=torch.float64)
    convolved = F.conv2d(lower, interaction.weight, padding=1)
    expected = torch.stack([convolved[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
    expected = expected + interaction.bias.view(-1, 1, 1)
    torch.testing.assert_close(interaction.drive(lower).value, expected)


def test_a_dense_interaction_flattens_multiplies_and_adds_the_bias(generator):
    interaction = DenseInteraction(12, 5, dtype=torch.float64)
    lower = torch.rand(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    expected = torch.einsum("of,bf->bo", interaction.weight, lower.reshape(4, 12)) + interaction.bias
    torch.testing.assert_close(interaction.drive(lower).value, expected)


def test_a_held_route_picks_the_same_positions_of_another_state(generator):
    interaction = ConvInteraction(2, 3, dtype=torch.float64)
    first, second = torch.rand(2, 4, 2, 8, 8, generator=generator, dtype=torch.float64)
    route = interaction.drive(first).route
    held = interaction.drive(second, route)
    unpooled = F.conv2d(second, interaction.weight, interaction.bias, padding=1)
    for sample, channel, row, column in ((0, 0, 0, 0), (1, 2, 3, 1), (3, 1, 2, 2)):
        position = int(route[sample, channel, row, column])
        expected = unpooled[sample, channel].flatten()[position]
        torch.testing.assert_close(held.value[sample, channel, row, column], expected)
    assert (held.value <= interaction.drive(second).value + 1e-12).all()
    torch.testing.assert_close(interaction.drive(first, route).value, interaction.drive(first).value)


def test_initial_parameters_fill_their_intervals(generator):
    interaction = ConvInteraction(16, 64)
    interaction.initialise(0.6, 0.5, generator)
    root = (16 * 9) ** 0.5
    for parameter, bound in ((interaction.weight, 0.6 / root), (interaction.bias, 0.5 / root)):
        assert 0.9 * bound < parameter.abs().max() <= bound
        assert abs(float(parameter.detach().mean())) < 0.2 * bound


def random_state(model, x, generator):
    return tuple(torch.rand(shape, generator=generator, dtype=torch.float64) for shape in model.state_shapes(x))


def test_a_network_without_read_out_has_the_energy_of_its_hidden_layers(make_dchn, batch, generator):
    model, (x, _) = make_dchn(num_classes=0), batch
    state = random_state(model, x, generator)
    assert state[-1].shape == (6, 0)
    hidden = [reference.Layer(m.weight.detach(), m.bias.detach()) for m in model.layers]
    torch.testing.assert_close(model.energy(x, state), reference.energy(hidden, x, state[:-1]), atol=1e-11, rtol=1e-12)


@pytest.fixture(params=[(16, 16), (17, 23)], ids=["even sizes", "odd sizes"])
def images(request, generator):
    """Images that every pooling divides, and images that leave a row or a column over at several layers."""
    return torch.randn(6, 2, *request.param, generator=generator, dtype=torch.float64)


def test_the_energy_is_the_references(make_dchn, images, generator):
    model, x = make_dchn(img_size=images.shape[2:]), images
    state = random_state(model, x, generator)
    torch.testing.assert_close(
        model.energy(x, state), reference.energy(responses.layers_of(model), x, state), atol=1e-11, rtol=1e-12
    )


def test_the_energys_gradient_is_a_finite_difference(make_dchn, batch, generator):
    model, (x, _) = make_dchn(), batch
    state = random_state(model, x, generator)
    model.energy(x, state).sum().backward()
    for parameter in (model.layers[0].weight, model.layers[2].weight, model.layers[1].bias, model.head.weight):
        index, step = 3, 1e-6
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.view(-1)[index] += sign * step
                values.append(float(model.energy(x, state).sum()))
                parameter.view(-1)[index] -= sign * step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(parameter.grad.view(-1)[index]), rel=1e-6)


def assert_same_sum(found, expected, inputs):
    """Two scalars that agree, and their gradients too."""
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_a_contrast_and_its_gradient_are_those_of_autograd_at_the_states(make_dchn, images, generator, copies):
    model, x = make_dchn(img_size=images.shape[2:]), images.repeat(copies, 1, 1, 1)
    free = model.relax(images).repeat(copies)
    target = torch.randn(6 * copies, 3, generator=generator, dtype=torch.float64)
    weights = torch.randn(6 * copies, generator=generator, dtype=torch.float64)
    relaxation = model.relax(free.input, free, Nudged(target, 0.5))
    inputs = [free.input.requires_grad_(), *model.parameters()]
    expected = (weights * model.energy(free.input, relaxation.state)).sum()
    assert_same_sum(model.contrast(relaxation, weights), expected, inputs)
    torch.testing.assert_close(relaxation.energy, model.energy(x, relaxation.state), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("order", list_orders())
def test_a_relaxation_with_held_routes_has_the_energy_of_those_routes(make_dchn, batch, generator, order):
    model, (x, _) = make_dchn(), batch
    free = model.relax(x)
    target = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    held = model.relax(x, free, Nudged(target, 5.0), Minimizer(order=order), hold_routes=True)
    weights = torch.randn(len(x), generator=generator, dtype=torch.float64)

    expected = torch.zeros(6, dtype=torch.float64)
    below = (x, *held.state[:-1])
    for interaction, lower, upper, drive in zip(model.interactions, below, held.state, free.drives, strict=True):
        value = interaction.drive(lower, drive.route).value
        expected = expected + (upper * upper / 2 - upper * value).flatten(1).sum(1)
    torch.testing.assert_close(model.energy(x, held), expected, atol=1e-12, rtol=1e-12)
    assert_same_sum(model.contrast(held, weights), (weights * expected).sum(), list(model.parameters()))
    # Pooling takes the largest drive, so any other route leaves the energy where it is or higher.
    followed = model.energy(x, held.state)
    assert (expected >= followed - 1e-12).all()
    assert (expected > followed + 1e-6).any()


def test_a_contrast_of_states_of_other_parameters_is_refused(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    relaxation = model.relax(x)
    with torch.no_grad():
        model.layers[1].weight.mul_(1.5)
    with pytest.raises(ValueError, match="relax anew"):
        model.contrast(relaxation, torch.ones(len(x)))


def test_known_drives_are_not_used_for_another_input_or_other_parameters(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    relaxation = model.relax(x)
    other = x.clone() + 1
    torch.testing.assert_close(model.energy(other, relaxation), model.energy(other, relaxation.state))
    continued = model.relax(other, relaxation)
    torch.testing.assert_close(continued.state, model.relax(other, relaxation.state).state)

    for stranger in (make_dchn(seed=1), make_dchn()):
        torch.testing.assert_close(stranger.energy(x, relaxation), stranger.energy(x, relaxation.state))
    with torch.no_grad():
        model.layers[1].weight.mul_(1.5)
    torch.testing.assert_close(model.energy(x, relaxation), model.energy(x, relaxation.state))
    torch.testing.assert_close(model.relax(x, relaxation).state, model.relax(x, relaxation.state).state)


def test_known_drives_are_not_used_once_the_input_or_the_read_out_is_another(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    relaxation = model.relax(x)
    model.reset_classifier(3)
    torch.testing.assert_close(model.energy(x, relaxation), model.energy(x, relaxation.state))
    relaxation = model.relax(x)
    x.mul_(1.5)
    torch.testing.assert_close(model.energy(x, relaxation), model.energy(x, relaxation.state))


def test_a_network_works_in_inference_mode(make_dchn, batch):
    x, _ = batch
    with torch.inference_mode():
        model = make_dchn()
        free = model.relax(x.clone())
        assert model.relax(free.input, free).state[0].shape == free.state[0].shape


@pytest.mark.parametrize(("kernel_size", "pool"), [(2, 2), (4, 2), (0, 2), (3, 0)])
def test_kernels_that_do_not_keep_the_image_size_are_refused(kernel_size, pool):
    with pytest.raises(ValueError, match="odd"):
        ConvInteraction(2, 3, kernel_size=kernel_size, pool=pool)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN")
@pytest.mark.parametrize("winograd", [False, True])
def test_packed_weights_give_the_same_trajectory(make_dchn, batch, request, winograd):
    if winograd:
        request.getfixturevalue("served_everywhere")
    model, x = make_dchn(dtype=torch.float32), batch[0].float()
    minimizer = Minimizer(sweeps=60, omega=1.0)
    packed = model.relax(x, minimizer=minimizer)
    assert all(interaction.packs for interaction in packed.prepared[:-1])
    served = [isinstance(interaction.engine, Winograd) for interaction in packed.prepared[:-1]]
    assert served == [*[winograd] * 3, False], "The last layer's image of 2x2 is no tile."
    with torch.backends.mkldnn.flags(enabled=False):
        plain = model.relax(x, minimizer=minimizer)
    assert not any(interaction.packs for interaction in plain.prepared[:-1])
    for found, expected in zip(packed.state, plain.state, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(packed.energy, plain.energy, rtol=1e-5, atol=1e-5)


def test_packed_weights_follow_the_parameters(make_dchn, batch):
    model, x = make_dchn(dtype=torch.float32), batch[0].float()
    before = model.relax(x)
    with torch.no_grad():
        model.layers[1].weight.mul_(0.5)
    again, afresh = model.relax(x, before), model.relax(x, before.state)
    for found, expected in zip(again.state, afresh.state, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (again.state[1] - before.state[1]).abs().max() > 1e-3


def test_a_relaxation_made_in_inference_mode_goes_on_outside_it(make_dchn, batch):
    model, x = make_dchn(dtype=torch.float32), batch[0].float()
    with torch.inference_mode():
        free = model.relax(x)
    again, expected = model.relax(x, free), model.relax(x, free.state)
    torch.testing.assert_close(again.state, expected.state, rtol=0, atol=1e-5)
