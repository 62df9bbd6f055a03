"""A network is a PyTorch module like any other: parametrised, functional, traced, compiled, copied."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from oracles import error, flat, images_for, parameter_gradients, signs_for
from parametrised import WAYS, copy_weights, parametrised, pulled_back
from torch.nn.utils import prune

from timm_ebl import Minimizer, create_backward, create_rule, list_rules
from timm_ebl.training.task import RuleTask

# -------------------------------------------------------------------------------------------------- weights of weights


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("learns", ["rule", "loss", "tbp"])
def test_the_gradient_goes_on_to_whatever_makes_the_weights(make_live, batch, way, learns):
    (model, plain), (x, y) = parametrised(make_live(backward="tbp" if learns == "tbp" else "ep"), way), batch

    def step(network):
        return create_rule("c-ep")(network, x, y).loss if learns == "rule" else F.cross_entropy(network(x), y)

    expected = pulled_back(model, parameter_gradients(plain, step(plain)))
    found = parameter_gradients(model, step(model))
    assert error(flat(found), flat(expected)) < 1e-9
    assert flat(found).norm() > 0


@pytest.mark.parametrize("way", WAYS)
def test_the_answer_follows_what_makes_the_weights(make_live, batch, way):
    (model, plain), (x, y) = parametrised(make_live(), way), batch
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(model.energy(x, model.relax(x)), plain.energy(x, plain.relax(x)))
        optimizer.zero_grad()
        create_rule("c-ep")(model, x, y).loss.backward()
        optimizer.step()
        copy_weights(plain, model)


def test_a_network_that_is_pruned_again_takes_nothing_from_before(make_live, batch):
    (model, plain), x = parametrised(make_live(), "pruning"), batch[0]
    free = model.relax(x)
    prune.random_unstructured(model.layers[1], "weight", 0.5)
    model(x)  # pruning makes the weight where a module is called
    copy_weights(plain, model)
    found, expected = model.relax(x, free), plain.relax(x, free.state)
    torch.testing.assert_close(found.state, expected.state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settle", [True, False])
def test_a_functional_call_with_masks_has_their_gradient(make_live, batch, settle):
    model, _ = parametrised(make_live(), "pruning")
    model.backward = create_backward("ep", settle=settle)
    other, _ = parametrised(make_live(), "pruning")
    other.load_state_dict({k: v.roll(1) if k.endswith("_mask") else v for k, v in model.state_dict().items()})
    buffers = {name: buffer.detach() for name, buffer in other.named_buffers()}
    given = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    for values in (given, dict(model.named_parameters())):
        loss = F.cross_entropy(torch.func.functional_call(model, (values, buffers), (batch[0],)), batch[1])
        found = torch.autograd.grad(loss, list(values.values()))
        other.backward = model.backward
        expected = parameter_gradients(other, F.cross_entropy(other(batch[0]), batch[1]))
        torch.testing.assert_close(found, tuple(expected), rtol=1e-6, atol=1e-9)


def test_a_buffer_that_the_first_call_makes_and_others_replace_is_no_hindrance(make_live, batch):
    model, plain, (x, y) = make_live(), make_live(), batch
    layer = model.layers[1]
    layer.register_buffer("seen", None)
    original = layer.operator

    def operator(*arguments, **keywords):
        layer.seen = torch.ones(()) if layer.seen is None else layer.seen + 1
        return original(*arguments, **keywords)

    layer.operator = operator
    for _ in range(2):
        found, expected = (parameter_gradients(each, F.cross_entropy(each(x), y)) for each in (model, plain))
        assert error(flat(found), flat(expected)) == 0


def test_spectral_norm_learns_in_training_mode(make_live, batch):
    (model, _), (x, y) = parametrised(make_live(), "spectral norm"), batch
    expected = flat(parameter_gradients(model, F.cross_entropy(model(x), y)))
    assert error(flat(parameter_gradients(model.train(), F.cross_entropy(model(x), y))), expected) < 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_a_symbolic_trace_has_all_that_makes_the_weights(make_live, batch, way):
    (model, _), (other, _) = (parametrised(make_live(seed=seed), way) for seed in (0, 5))
    with torch.no_grad():
        for buffer in other.buffers():
            buffer.copy_(buffer.roll(1, -1))
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(graph(batch[0]), model(batch[0]))
    assert graph.state_dict().keys() == model.state_dict().keys()
    graph.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(graph(batch[0]), other(batch[0]))
    graph.train()
    assert all(part.training for part in model.interactions)


@pytest.mark.parametrize("way", ["pruning", "weight norm"])
def test_a_read_out_that_others_make_is_not_resized(make_live, way):
    model, _ = parametrised(make_live(), way)
    with pytest.raises(ValueError, match=r"read-out's weight is made of other parameters.*remove"):
        model.set_input_size(32)
    assert model.img_size == (16, 16)


# ---------------------------------------------------------------------------------------------------------- functional


def test_a_functional_call_has_the_gradient_of_the_parameters_given(make_live, batch):
    model, (x, y) = make_live(), batch
    other = make_live(seed=5)
    expected = parameter_gradients(other, F.cross_entropy(other(x), y))
    given = {name: value.detach().clone().requires_grad_() for name, value in other.named_parameters()}
    loss = F.cross_entropy(torch.func.functional_call(model, given, (x,)), y)
    torch.testing.assert_close([*torch.autograd.grad(loss, list(given.values()))], expected, rtol=1e-12, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", list_rules())
def test_a_rule_called_with_other_parameters_has_their_gradient(make_live, batch, name):
    model, other, (x, y) = make_live(), make_live(seed=5), batch
    rule = create_rule(name)
    signs = signs_for(rule, x)
    expected = parameter_gradients(other, rule(other, x, y, **signs).loss)
    task = RuleTask(model, rule, verbose=False)
    given = [value.detach().clone().requires_grad_() for value in other.parameters()]
    names = [name for name, _ in task.named_parameters()]
    torch.func.functional_call(task, dict(zip(names, given, strict=True)), (x, y), signs)["loss"].backward()
    torch.testing.assert_close([value.grad for value in given], expected, rtol=1e-12, atol=1e-15)


def test_parameters_that_are_results_themselves_have_their_gradient(make_live, batch):
    model, (x, y) = make_live(), batch
    halves = {name: (value.detach() / 2).requires_grad_() for name, value in model.named_parameters()}
    doubled = {name: 2 * value for name, value in halves.items()}
    found = torch.autograd.grad(
        F.cross_entropy(torch.func.functional_call(model, doubled, (x,)), y), list(halves.values())
    )
    expected = parameter_gradients(model, F.cross_entropy(model(x), y))
    torch.testing.assert_close(flat(found), 2 * flat(expected), rtol=1e-12, atol=0)


def test_functional_gradients_are_those_of_a_backward_pass(make_live, batch):
    model, (x, y) = make_live(), batch
    expected = parameter_gradients(model, F.cross_entropy(model(x), y))
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, x):
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

    found, of_input = torch.func.grad(loss, (0, 1))(parameters, x)
    assert error(flat(found.values()), flat(expected)) < 1e-9
    x = x.clone().requires_grad_()
    (of_input_expected,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    assert error(of_input, of_input_expected) < 1e-9


def test_transforms_that_a_relaxation_has_not_are_refused(make_live, batch):
    model, (x, y) = make_live(), batch
    with pytest.raises(RuntimeError, match=r"cannot be mapped by torch.func.vmap: give the network the whole batch"):
        torch.vmap(lambda image: model(image[None])[0])(x)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"cannot be mapped by torch.func.vmap"):
        torch.vmap(lambda image: model(image[None])[0])(x)
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(model, (x,), (x,))
    task = RuleTask(model, create_rule("c-ep"), verbose=False)
    parameters = {name: value.detach() for name, value in task.named_parameters()}
    with pytest.raises(RuntimeError, match=r"torch.func cannot differentiate a rule"):
        torch.func.grad(lambda p: torch.func.functional_call(task, p, (x, y))["loss"])(parameters)


@pytest.mark.parametrize("learns", ["rule", "loss"])
def test_there_is_no_second_derivative(make_live, batch, learns):
    model, (x, y) = make_live(), batch
    loss = create_rule("c-ep")(model, x, y).loss if learns == "rule" else F.cross_entropy(model(x), y)
    first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    torch.testing.assert_close(
        flat(first), flat(parameter_gradients(model, F.cross_entropy(model(x), y))) if learns == "loss" else flat(first)
    )
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        flat(first).square().sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_have_the_gradient(make_live, batch, reentrant):
    model, (x, y) = make_live(), batch
    expected = parameter_gradients(model, F.cross_entropy(model(x), y))
    model.zero_grad()
    x = x.clone().requires_grad_()
    output = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
    F.cross_entropy(output, y).backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


# -------------------------------------------------------------------------------------------------------------- graphs


@pytest.mark.parametrize("grad", [True, False])
def test_a_recorded_trace_is_checked_saved_and_answers_alike(tiny, grad):
    x = images_for(tiny)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(tiny.eval(), x), file := io.BytesIO())
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), tiny(x))


@pytest.mark.filterwarnings("ignore")
def test_a_relaxation_to_a_tolerance_is_not_recorded(make_dchn, batch):
    model, (x, _) = make_dchn(tolerance=1e-3), batch
    on_meta = copy.deepcopy(model).to("meta")
    recordings = (
        lambda: torch.jit.trace(model, x, check_trace=False),
        lambda: torch.jit.script(model),
        lambda: torch.export.export(model, (x,)),
        lambda: on_meta(x.to("meta")),
    )
    for record in recordings:
        with pytest.raises(RuntimeError, match=r"a tolerance \(0.001\).* a fixed number"):
            record()


def test_without_gradients_a_network_compiles_to_one_graph(make_dchn, batch):
    model, x = make_dchn(dtype=torch.float32), batch[0].float()
    torch.compiler.reset()
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    states = torch.compile(model.forward_intermediates, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(whole(x), model(x))
        model.layers[0].weight.mul_(1.1)
        model.minimizer = Minimizer(sweeps=3)
        assert torch.equal(whole(x[:4]), model(x[:4]))
        found, expected = states(x)[1], model.forward_intermediates(x)[1]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        other = copy.deepcopy(model)
        other.minimizer = Minimizer(sweeps=1)
        assert torch.equal(torch.compile(other, backend="aot_eager", fullgraph=True)(x), other(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(whole(x), model(x))


# -------------------------------------------------------------------------------------------------- copies and layouts


def test_a_network_is_copied_pickled_and_shared(make_live, batch):
    model, (x, y) = make_live(), batch
    expected = parameter_gradients(model, F.cross_entropy(model(x), y))
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).share_memory()):
        assert torch.equal(other(x), model(x))
        torch.testing.assert_close(parameter_gradients(other, F.cross_entropy(other(x), y)), expected, rtol=0, atol=0)
        with torch.no_grad():
            other.head.bias.add_(1)
        assert not torch.equal(other(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_of_16_bits_answers_and_learns(make_live, batch, dtype):
    model, (x, y) = make_live(), batch
    expected = flat(parameter_gradients(model, F.cross_entropy(model(x), y)))
    half = copy.deepcopy(model).to(dtype)
    output = half(x.to(dtype))
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), model(x), atol=0.05, rtol=0.05)
    found = flat(parameter_gradients(half, F.cross_entropy(output.float(), y)))
    assert F.cosine_similarity(found.double(), expected, dim=0) > 0.98


def test_hooks_of_the_network_and_its_parameters_are_called(make_live, batch):
    model, (x, y) = make_live(), batch
    called = []
    model.register_forward_pre_hook(lambda *_: called.append("before"))
    model.register_forward_hook(lambda *_: called.append("after"))
    model.register_full_backward_hook(lambda *_: called.append("backward"))
    model.layers[0].weight.register_hook(lambda gradient: called.append("weight"))
    F.cross_entropy(model(x), y).backward()
    assert called[:3] == ["before", "after", "backward"]
    assert set(called[3:]) == {"weight"}
