"""What a relaxation has computed is used again as long as it holds, and no longer."""

import threading

import pytest
import torch
from oracles import distance
from parametrised import copy_weights
from predictive import small_network
from torch import nn
from torch.nn.utils import prune

from timm_ebl import Forced, Minimizer, create_rule
from timm_ebl.energy.perturbation import Free, Nudged


def fused_step(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.5, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def new_vector(model):
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector / 2, model.parameters())


@pytest.mark.parametrize("change", [fused_step, new_vector])
def test_parameters_that_a_fused_optimiser_or_a_vector_has_set_are_noticed(make_dchn, batch, change):
    model, (x, _) = make_dchn(), batch
    free = model.relax(x)
    with torch.no_grad():
        change(model)
    assert distance(model.relax(x, free).state, model.relax(x, free.state).state) == 0
    with pytest.raises(ValueError, match="relax anew"):
        model.contrast(free, x.new_ones(len(x)))


class Halves(prune.BasePruningMethod):
    """A way of pruning of one's own."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


def test_a_way_of_pruning_of_ones_own_is_followed(make_live, batch):
    model, plain, (x, y) = make_live(), make_live(), batch
    Halves.apply(model.layers[1], "weight")
    for _ in range(2):
        create_rule("c-ep")(model, x, y).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        copied = model.layers[1].weight_orig * model.layers[1].weight_mask
        copy_weights(plain, model)
        with torch.no_grad():
            plain.layers[1].weight.copy_(copied)
        assert distance(model.relax(x).state, plain.relax(x).state) == 0


def test_a_free_perturbation_is_free_whichever_it_is(make_dchn, batch):
    model, (x, y) = make_dchn(), batch
    nudge = Nudged(torch.nn.functional.one_hot(y, 3).to(x), 0.1)
    found, expected = (
        model.respond(model.relax(x, **free), nudge, Minimizer(sweeps=2)) for free in ({"perturbation": Free()}, {})
    )
    assert distance(found.state, expected.state) == 0
    network = small_network()
    images = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    start = tuple(torch.ones_like(layer) for layer in network.relax(images).state)
    assert distance(network.relax(images, start, Free()).state, network.relax(images).state) == 0


def test_going_on_from_a_predictive_response_is_going_on_from_its_state():
    network, images = small_network(gains=3.0), torch.rand(2, 2, 8, 8, dtype=torch.float64)
    nudge = Nudged(torch.eye(3, dtype=torch.float64)[:2], 0.5)
    response = network.respond(network.relax(images), nudge, network.perturbed)
    further = Minimizer(sweeps=1, omega=1.0)
    found, expected = (network.relax(images, start, nudge, further) for start in (response, tuple(response.state)))
    assert distance(found.state, expected.state) == 0


def test_copies_of_what_inference_mode_has_made_know_nothing(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    with torch.inference_mode():
        free = model.relax(x)
    forces = Forced([None] * len(free.state))
    for begin in (free, free.twice()):
        with pytest.raises(ValueError, match=r"relax anew|inference"):
            model.respond(begin, forces, Minimizer(sweeps=2))


def test_two_threads_may_go_on_from_one_relaxation(make_dchn):
    model = make_dchn(widths=(16, 32), img_size=32, in_chans=3, num_classes=10, dtype=torch.float32)
    x, y = torch.rand(32, 3, 32, 32), torch.eye(10)[torch.arange(32) % 10]
    free = model.relax(x)

    def respond(beta):
        return model.respond(free, Nudged(y, beta), Minimizer(order="backward", sweeps=6)).state

    expected, found = {beta: respond(beta) for beta in (0.5, -0.5)}, {}
    for _ in range(10):
        threads = [threading.Thread(target=lambda b=beta: found.update({b: respond(b)})) for beta in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(distance(found[beta], state) == 0 for beta, state in expected.items())
