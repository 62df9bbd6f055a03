"""Any loss has its gradient by equilibrium propagation: against implicit differentiation and finite differences."""

import functools
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from oracles import BETAS, CONVERGED, LABELS, TARGET, error, finite_difference, gradient, slope
from quartic import QuarticHopfield
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from timm_ebl import DCHN, Forced, Minimizer, create_backward, create_rule, equilibrium, list_backwards
from timm_ebl.memory import LiveMemory, peak_memory
from timm_ebl.rules import squared_error
from timm_ebl.task import RuleTask

TEACHER = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.5, 0.4, 0.1], [0.3, 0.4, 0.3]]).double()
LOSSES = {
    "cross-entropy": lambda output: F.cross_entropy(output, LABELS),
    "label smoothing, summed": lambda output: F.cross_entropy(output, LABELS, label_smoothing=0.1, reduction="sum"),
    "distillation": lambda output: F.kl_div((output / 2).log_softmax(1), TEACHER, reduction="batchmean"),
    "squared error": lambda output: squared_error(output, TARGET).mean(),
    "binary cross-entropy": lambda output: F.binary_cross_entropy_with_logits(output, TARGET * 0.9),
}
MANY = {
    "tbp": create_backward("tbp", second=Minimizer(sweeps=400, omega=1.0)),
    "rbp": create_backward("rbp", second=Minimizer(sweeps=400, omega=1.0, order="synchronous")),
}


def converged_ep(beta):
    return create_backward("ep", beta=beta, second=CONVERGED)


def unheld_ep(beta):
    """For the dense networks, which have no routes to hold."""
    return create_backward("ep", beta=beta, hold_routes=False)


@pytest.fixture
def make_live(make_dchn):
    """Builds a DCHN with units strictly inside [0, 1] in every layer, so that every parameter has a gradient."""
    return functools.partial(make_dchn, seed=3, gains=0.5, bias_gain=1.5)


def converged(model):
    """The network, relaxing until nothing changes."""
    model.minimizer = CONVERGED
    return model


def parameter_gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


# ----------------------------------------------------------------------------------------------------------- the force


@pytest.mark.parametrize("beta", [-5.0, 0.3, 5.0])
def test_a_force_is_exactly_minimised_whatever_its_strength(make_live, batch, generator, beta):
    model, (x, _) = make_live(), batch
    free = model.relax(x)
    forces = [beta * torch.randn(s.shape, generator=generator, dtype=s.dtype) for s in free.state]
    forces[1] = None
    perturbation = Forced(forces)
    state, before = free.state, torch.full((len(x),), float("inf"), dtype=x.dtype)
    for _ in range(20):
        state = model.relax(x, state, perturbation, Minimizer(sweeps=1, omega=1.4)).state
        after = (model.energy(x, state) + perturbation.cost(state)).detach()
        assert (after <= before + 1e-12).all()
        before = after
    output = model.head(state[-2].flatten(1)) - forces[-1]
    settled = model.relax(x, state, perturbation, CONVERGED)
    torch.testing.assert_close(settled.output, model.head(settled.state[-2].flatten(1)) - forces[-1])
    assert output.shape == settled.output.shape


def test_a_force_of_nothing_costs_nothing(dense):
    model, x = dense
    state = model.relax(x).state
    assert torch.equal(Forced([None, None]).cost(state), torch.zeros(len(x), dtype=x.dtype))


# ------------------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_baselines_are_the_finite_difference_of_any_loss(dense, loss):
    model, x = dense
    expected = finite_difference(model, lambda: float(loss(model.relax(x).output)))
    for backward in MANY.values():
        found = gradient(model, loss(equilibrium(model, x, backward)[0]))
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_equilibrium_propagation_differs_by_the_square_of_beta(dense, loss):
    x = dense[1]
    model = QuarticHopfield(scale=0.5)
    expected = gradient(model, loss(equilibrium(model, x, MANY["rbp"])[0]))
    errors = []
    for beta in BETAS:
        errors.append(error(gradient(model, loss(equilibrium(model, x, unheld_ep(beta))[0])), expected))
    assert slope(errors) == pytest.approx(2, abs=0.05)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert 1e-8 < errors[-1] < BETAS[-1] ** 2


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_in_a_hopfield_network_it_is_exact_until_a_unit_meets_a_bound(dense, make_live, batch, loss, pooling):
    model, x = dense
    expected = gradient(model, loss(equilibrium(model, x, MANY["rbp"])[0]))
    for beta in (0.01, 0.1, 0.5):
        assert error(gradient(model, loss(equilibrium(model, x, unheld_ep(beta))[0])), expected) < 1e-12
    model, x = converged(make_live(pooling=pooling)), batch[0][:5]
    expected = gradient(model, loss(equilibrium(model, x, MANY["rbp"])[0]))
    errors = [error(gradient(model, loss(equilibrium(model, x, converged_ep(b))[0])), expected) for b in (1e-3, 0.5)]
    assert errors[0] < 1e-8
    assert errors[0] < errors[1] < 0.2


def test_truncated_backpropagation_passes_gradcheck_in_input_and_parameters(dense):
    model, x = dense

    def output(x, *parameters):
        return equilibrium(model, x, MANY["tbp"])[0]

    assert torch.autograd.gradcheck(output, (x.clone().requires_grad_(), *model.parameters()))


@pytest.mark.parametrize("name", list_backwards())
def test_the_input_has_a_gradient(make_live, batch, name):
    model, (x, _) = converged(make_live()), batch
    model.backward = converged_ep(1e-3) if name == "ep" else MANY[name]
    x, direction = x[:1].clone().requires_grad_(), torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(5))
    (found,) = torch.autograd.grad(model(x).square().sum(), x)
    with torch.no_grad():
        values = [model(x + sign * 1e-5 * direction).square().sum() for sign in (1, -1)]
    torch.testing.assert_close((found * direction).sum(), (values[0] - values[1]) / 2e-5, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("name", ["tbp", "rbp"])
def test_for_the_squared_error_the_backward_pass_is_the_rule_of_its_name(make_live, batch, name):
    model, (x, y) = converged(make_live()), batch
    model.backward = MANY[name]
    expected = gradient(model, create_rule(name, free=CONVERGED, second=MANY[name].second)(model, x, y).loss)
    assert error(gradient(model, squared_error(model(x), torch.eye(3).double()[y]).mean()), expected) < 1e-9


def test_a_loss_on_the_hidden_layers_has_its_gradient(make_live, batch):
    model, (x, _) = converged(make_live()), batch
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(s.shape, generator=generator, dtype=s.dtype) for s in model.relax(x).state[:-1]]

    def loss():
        return sum((w * s).sum() for w, s in zip(weights, model.forward_intermediates(x)[1], strict=True))

    expected = {name: gradient(model, loss()) for model.backward in MANY.values() for name in [repr(model.backward)]}
    truncated, recurrent = expected.values()
    assert error(truncated, recurrent) < 1e-8
    model.backward = converged_ep(1e-5)
    assert error(gradient(model, loss()), recurrent) < 1e-6


def test_a_classifier_put_on_the_features_by_hand_has_the_models_gradient(make_live, batch):
    model, (x, y) = converged(make_live()), batch
    model.backward = MANY["rbp"]
    whole = gradient(model, F.cross_entropy(model(x), y))
    by_hand = gradient(model, F.cross_entropy(model.forward_head(model.forward_features(x)), y))
    assert error(by_hand, whole) < 1e-8


def test_a_layer_used_twice_has_the_sum_of_its_gradients(make_live, batch):
    model, (x, _) = make_live(), batch

    def gradients(count):
        last, states = model.forward_intermediates(x, indices=[3])
        return gradient(model, (last * count).square().sum() if count > 1 else (last + states[0]).square().sum())

    torch.testing.assert_close(gradients(1), gradients(2))


# -------------------------------------------------------------------------------------------------- as any other module


@pytest.mark.parametrize("name", list_backwards())
def test_samples_without_a_gradient_contribute_nothing(make_live, batch, name):
    model, (x, y) = make_live(backward=name), batch
    losses = F.cross_entropy(model(x), y, reduction="none")
    some = flat(parameter_gradients(model, (losses * torch.tensor([1.0, 0, 1, 0, 0, 0])).sum()))
    both = flat(parameter_gradients(model, F.cross_entropy(model(x[[0, 2]]), y[[0, 2]], reduction="sum")))
    torch.testing.assert_close(some, both, rtol=1e-7, atol=1e-10)
    assert all(not g.any() for g in parameter_gradients(model, 0 * model(x).sum()))


@pytest.mark.parametrize("name", list_backwards())
@pytest.mark.parametrize("scale", [1e-30, 2.0**16, 1e30])
def test_the_gradient_follows_the_losses_scale(make_live, batch, name, scale):
    model, (x, y) = make_live(backward=name), batch
    plain = flat(parameter_gradients(model, F.cross_entropy(model(x), y)))
    scaled = flat(parameter_gradients(model, F.cross_entropy(model(x), y) * scale))
    assert error(scaled / scale, plain) < 1e-9


def test_an_infinite_gradient_is_passed_on_for_a_loss_scaler_to_skip(make_live, batch):
    model, (x, y) = make_live(dtype=torch.float32), batch
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    before = [p.clone() for p in model.parameters()]
    for factor, moves in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x.float()), y) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        same = [torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
        assert all(same) is not moves
    assert scaler.get_scale() == 2.0**9


def test_a_loss_scaler_changes_nothing_else(make_live, batch):
    model, (x, y) = make_live(dtype=torch.float32), batch
    plain = flat(parameter_gradients(model, F.cross_entropy(model(x.float()), y)))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaled = parameter_gradients(model, scaler.scale(F.cross_entropy(model(x.float()), y)))
    torch.testing.assert_close(flat(scaled) / 2**16, plain, rtol=1e-5, atol=1e-8)


def test_gradients_accumulate(make_live, batch):
    model, (x, y) = make_live(), batch
    whole = flat(parameter_gradients(model, F.cross_entropy(model(x), y)))
    model.zero_grad()
    for part in (slice(0, 2), slice(2, 6)):
        (F.cross_entropy(model(x[part]), y[part], reduction="sum") / 6).backward()
    torch.testing.assert_close(flat(p.grad for p in model.parameters()), whole, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", list_backwards())
def test_frozen_parameters_have_no_gradient_and_leave_the_others_theirs(make_live, batch, name):
    model, (x, y) = make_live(backward=name), batch
    expected = parameter_gradients(model, F.cross_entropy(model(x), y))
    model.layers.requires_grad_(False)
    *frozen, weight, bias = parameter_gradients(model, F.cross_entropy(model(x), y))
    assert frozen == [None] * 8
    torch.testing.assert_close([weight, bias], expected[-2:])
    model.requires_grad_(False)
    assert not model(x).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept(make_live, batch, mode):
    model, (x, _) = make_live(), batch
    expected = model(x)
    with mode(), LiveMemory() as memory:
        output = model(x)
        live = memory.live
    assert output.grad_fn is None
    assert torch.equal(output, expected.detach())
    assert live <= output.numel() * 8 + x.numel() * 8


def test_training_and_evaluation_mode_are_the_same(make_live, batch):
    model, (x, y) = make_live(), batch
    first = flat(parameter_gradients(model.train(), F.cross_entropy(model(x), y)))
    assert torch.equal(flat(parameter_gradients(model.eval(), F.cross_entropy(model(x), y))), first)


def test_a_retained_graph_gives_the_gradient_again_and_a_freed_one_an_error(make_live, batch):
    model, (x, y) = make_live(), batch
    loss = F.cross_entropy(model(x), y)
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, parameters)


def test_parameters_changed_before_the_backward_pass_are_an_error(make_live, batch):
    model, (x, y) = make_live(), batch
    loss = F.cross_entropy(model(x), y)
    with torch.no_grad():
        model.head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = F.cross_entropy(model(x), y)
    model.head.weight = torch.nn.Parameter(model.head.weight.detach().clone())
    with pytest.raises(RuntimeError, match="replaced between its forward and its backward"):
        loss.backward()


def test_results_may_be_changed_in_place(make_live, batch):
    model, (x, y) = make_live(), batch
    expected = parameter_gradients(model, F.cross_entropy(model(x) * 2, y))
    found = parameter_gradients(model, F.cross_entropy(model(x).mul_(2), y))
    torch.testing.assert_close(found, expected)


def test_the_free_state_goes_with_the_result(make_live, batch):
    model, (x, _) = make_live(), batch
    gc.disable()
    try:
        relaxations, relax = [], model.relax
        model.relax = lambda *args, **kw: relaxations.append(weakref.ref(free := relax(*args, **kw))) or free
        output = model(x)
        assert relaxations[0]() is not None
        output.sum().backward()
        assert relaxations[0]() is None
        output = model(x)
        del output
        assert relaxations[-1]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", list_backwards())
def test_under_autocast_the_backward_pass_runs_in_16_bits_too(make_live, batch, name):
    model, (x, y) = make_live(dtype=torch.float32, backward=name, sweeps=8, omega=1.5), batch
    x = x.float()
    expected = parameter_gradients(model, F.cross_entropy(model(x), y))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
        loss = F.cross_entropy(output, y)
        state = model.relax(x).state
    assert all(layer.dtype == torch.bfloat16 for layer in state[:-2])
    found = parameter_gradients(model, loss)
    assert all(g.dtype == torch.float32 for g in found)
    assert F.cosine_similarity(flat(found), flat(expected), dim=0) > 0.99


# ---------------------------------------------------------------------------------------------------------------- costs


def test_a_step_costs_what_a_step_of_c_ep_costs(make_live, generator):
    model = make_live(dtype=torch.float32, widths=(16, 32, 64, 64), in_chans=3, img_size=32, num_classes=10)
    x, y = torch.randn(16, 3, 32, 32, generator=generator), torch.arange(16) % 10
    rule = create_rule("c-ep", hold_routes=True)

    def rule_step():
        rule(model, x, y).loss.backward()

    def model_step():
        F.cross_entropy(model(x), y).backward()

    rule_step()
    operations = []
    for step in (rule_step, model_step):
        with FlopCounterMode(display=False) as counter:
            step()
        operations.append(counter.get_total_flops())
    assert operations[1] <= 1.01 * operations[0]
    cpu = torch.device("cpu")
    assert peak_memory(model_step, cpu) <= 1.1 * peak_memory(rule_step, cpu)


def test_memory_does_not_grow_with_the_sweeps(make_live, batch):
    model, (x, y) = make_live(), batch
    peaks = []
    for sweeps in (4, 40):
        model.minimizer = Minimizer(sweeps=sweeps)
        model.backward = create_backward("ep", second=Minimizer(sweeps=sweeps))
        peaks.append(peak_memory(lambda: F.cross_entropy(model(x), y).backward(), torch.device("cpu")))
    assert peaks[1] <= 1.01 * peaks[0]


# ------------------------------------------------------------------------------------------------------------- settings


def test_unknown_settings_are_refused_with_the_known_ones(make_live):
    with pytest.raises(ValueError, match="'bptt': choose one of ep, tbp, rbp"):
        make_live(backward="bptt")
    with pytest.raises(ValueError, match="'tbp' has no option 'beta': its options are second"):
        create_backward("tbp", beta=0.1)
    for beta in (0, -1, float("nan"), float("inf"), "0.5", True):
        with pytest.raises(ValueError, match="beta is a positive number"):
            create_backward("ep", beta=beta)


def test_the_method_is_an_attribute(make_live, batch):
    model, (x, y) = make_live(), batch
    assert model.backward == create_backward("ep")
    found = []
    for name in list_backwards():
        model.backward = create_backward(name)
        found.append(flat(parameter_gradients(model, F.cross_entropy(model(x), y))))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


# ----------------------------------------------------------------------------------------------------- in two processes


def small_dchn():
    model = DCHN(widths=(4, 5), num_classes=3, in_chans=2, img_size=8, bias_gain=1.5, dtype=torch.float64)
    model.init_weights(torch.Generator().manual_seed(3))
    x = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, x, torch.tensor([0, 1, 2, 0, 1, 2])


def half_a_batch_each(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    part = slice(3 * rank, 3 * rank + 3)
    model, x, y = small_dchn()
    parallel = DistributedDataParallel(model)
    F.cross_entropy(parallel(x[part]), y[part]).backward()
    found = [parameter.grad for parameter in model.parameters()]
    model, x, y = small_dchn()
    task = RuleTask(model, create_rule("c-ep"), verbose=False).prepare_distributed()
    with task.no_sync():
        task(x[part], y[part])["loss"].backward()
    task(x[part], y[part])["loss"].backward()
    found += [parameter.grad / 2 for parameter in task.parameters()]
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_with_half_a_batch_each_have_the_whole_batchs_gradient(tmp_path):
    torch.multiprocessing.spawn(half_a_batch_each, (tmp_path,), nprocs=2)
    model, x, y = small_dchn()
    expected = parameter_gradients(model, F.cross_entropy(model(x), y))
    expected += parameter_gradients(model, create_rule("c-ep")(model, x, y).loss)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-7, atol=1e-12)
