"""The energy: definitions, autograd, finite differences, the slow reference."""

import pytest
import responses
import timm
import torch

from timm_ebl import Minimizer, Nudged, create_rule
from timm_ebl.relaxation.order import list_orders
from timm_ebl.rules import reference


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


@pytest.mark.parametrize("copies", [1, 2])
def test_a_contrast_and_its_gradient_are_those_of_autograd_at_the_states(make_dchn, images, generator, copies):
    model, x = make_dchn(img_size=images.shape[2:]), images.repeat(copies, 1, 1, 1)
    free = model.relax(images)
    free = free if copies == 1 else free.twice()
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
    held = model.respond(free, Nudged(target, 5.0), Minimizer(order=order))
    weights = torch.randn(len(x), generator=generator, dtype=torch.float64)

    expected = torch.zeros(6, dtype=torch.float64)
    below = (x, *held.state[:-1])
    for interaction, first, lower, upper in zip(
        model.interactions, (x, *free.state[:-1]), below, held.state, strict=True
    ):
        operator = interaction.operator(lower.shape)
        value = operator.drive(lower, operator.drive(first).route).value
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


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN")
@pytest.mark.parametrize("winograd", [False, True])
def test_packed_weights_give_the_same_trajectory(make_dchn, batch, request, winograd):
    if winograd:
        request.getfixturevalue("served_everywhere")
    model, x = make_dchn(dtype=torch.float32), batch[0].float()
    minimizer = Minimizer(sweeps=60, omega=1.0)
    packed = model.relax(x, minimizer=minimizer)
    with torch.backends.mkldnn.flags(enabled=False):
        plain = model.relax(x, minimizer=minimizer)
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


@pytest.mark.parametrize("name", ["c-ep", "n-cpl", "cl"])
@pytest.mark.parametrize("family", ["dchn_tiny_cifar10", "pcn_vgg5_tiny_cifar10"])
def test_a_contrastive_rule_refuses_inference_mode_by_its_name(name, family):
    model, x, y = timm.create_model(family), torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    words = r"Tensors of torch.inference_mode do not tell .* use torch.no_grad instead"
    with torch.inference_mode(), pytest.raises(ValueError, match=words):
        create_rule(name)(model, x, y)
    with torch.no_grad():
        assert create_rule(name)(model, x, y).loss.isfinite()


def test_a_relaxation_made_in_inference_mode_goes_on_outside_it(make_dchn, batch):
    model, x = make_dchn(dtype=torch.float32), batch[0].float()
    with torch.inference_mode():
        free = model.relax(x)
    again, expected = model.relax(x, free), model.relax(x, free.state)
    torch.testing.assert_close(again.state, expected.state, rtol=0, atol=1e-5)
