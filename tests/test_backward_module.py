"""A network differentiated by equilibrium propagation is a module like any other, and costs what a rule does."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from oracles import error, flat, parameter_gradients
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from timm_ebl import DCHN, Minimizer, create_backward, create_rule, list_backwards
from timm_ebl.training.memory import LiveMemory, peak_memory
from timm_ebl.training.task import RuleTask


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
    model.layers = model.layers[:3]
    with pytest.raises(RuntimeError, match="changed between its forward and its backward pass"):
        loss.backward()


def test_parameters_replaced_before_the_backward_pass_have_their_gradient(make_live, batch):
    model, (x, y) = make_live(), batch
    expected = parameter_gradients(model, F.cross_entropy(model(x), y))
    model.zero_grad()
    loss, used = F.cross_entropy(model(x), y), list(model.parameters())
    model.reset_classifier(3)
    loss.backward()
    torch.testing.assert_close([p.grad for p in used], expected, rtol=0, atol=0)
    assert model.head.weight.grad is None


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
    rule = create_rule("c-ep", linear_response=True)

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
        model.backward = create_backward("ep", perturbed=Minimizer(sweeps=sweeps))
        peaks.append(peak_memory(lambda: F.cross_entropy(model(x), y).backward(), torch.device("cpu")))
    assert peaks[1] <= 1.01 * peaks[0]


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
