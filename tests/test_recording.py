"""Steps and answers that are recorded and replayed, by a twin of a CUDA graph (`tape.py`)."""

import threading
import warnings
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from tape import Tape, assert_same, assert_steps_alike, everything, rule_of
from torch import nn
from torch.nn.utils import prune

from timm_ebl import DCHN, Minimizer, create_rule, list_rules, random_signs
from timm_ebl.kernels import convolution, recording
from timm_ebl.models.hopfield_resnet import HopfieldResNet
from timm_ebl.models.pcn import PCN
from timm_ebl.relaxation import descent
from timm_ebl.tools.procedures import variants

CONTRASTIVE = [name for name in list_rules() if name not in ("tbp", "rbp")]
FEW = ("cl", "c-ep", "r-cpl")
NETWORKS = {
    "dchn": lambda **kwargs: DCHN(**{"widths": (4, 5), "gains": 1.5, **kwargs}),
    "hopfield_resnet": lambda **kwargs: HopfieldResNet(**{"widths": (4,), **kwargs}),
    "pcn": lambda **kwargs: PCN(**{"widths": (4, 5, 6), "pools": (1, 2, 2), **kwargs}),
}


@pytest.fixture(autouse=True)
def tape(monkeypatch):
    """The twin records on the CPU, which computes as a GPU does: by PyTorch's convolutions, here without a compiler."""
    monkeypatch.setitem(recording.RECORDERS, "cpu", Tape)
    monkeypatch.setattr(convolution, "_packs", lambda *_: False)
    monkeypatch.setattr(descent, "compiled", lambda function, form: function)
    monkeypatch.setattr(Tape, "made", [])


def build(name="dchn", **kwargs):
    torch.manual_seed(0)
    model = NETWORKS[name](num_classes=3, in_chans=2, img_size=16, **kwargs)
    model.minimizer = replace(model.minimizer, compiled=True)
    return model


def images(step=0, count=4):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(count, 2, 16, 16, generator=generator)
    return x, torch.randint(3, (count,), generator=generator), random_signs(count, generator)


@pytest.mark.parametrize(
    ("network", "name"),
    [*(("dchn", name) for name in CONTRASTIVE), *((k, name) for k in ("hopfield_resnet", "pcn") for name in FEW)],
)
def test_a_replayed_step_is_the_step_while_the_weights_change(network, name):
    model = build(network)
    assert_steps_alike(rule_of(model, name), model, images)
    assert [tape.replays for tape in Tape.made] == [2]


@pytest.mark.parametrize(
    "options", [{"linear_response": False}, {"settle": False}, {"damped": True}, {"free": Minimizer(start="zero")}]
)
def test_a_replayed_step_has_the_options_of_its_rule(options):
    model = build()
    if "free" in options:
        options = {"free": replace(options["free"], compiled=True)}
    assert_steps_alike(rule_of(model, **options), model, images)
    assert [tape.replays for tape in Tape.made] == [2]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_replayed_step_under_autocast_is_the_step(network):
    model = build(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert_steps_alike(rule_of(model), model, images)
    assert [tape.replays for tape in Tape.made] == [2]


def test_a_replayed_step_starts_from_a_state():
    model, states = build(), []
    for step in range(3):
        states.append(tuple(layer + step for layer in model.relax(images()[0]).state))
        assert_steps_alike(rule_of(model), model, images, steps=1, start=states[-1])
    assert [tape.replays for tape in Tape.made] == [2]


def test_a_replayed_answer_is_the_answer_while_the_weights_change():
    model = build()
    for step in range(4):
        x, *_ = images(step)
        with recording.without_recordings():
            expected = model.answer(x)
        with torch.inference_mode() if step % 2 else nullcontext():
            assert_same(model.answer(x), expected)
        model.load_state_dict({name: weight * 0.9 for name, weight in model.state_dict().items()})
    (tape,) = Tape.made
    assert tape.replays == 3


def test_what_a_replay_returned_is_not_touched_by_the_next():
    model = build()
    rule = rule_of(model)
    steps = [rule(model, *images(step)[:2]) for step in range(3)]
    kept = [(out.loss.clone(), [layer.clone() for layer in (*out.free.state, *out.last, out.output)]) for out in steps]
    steps[1].free.state[0].zero_()
    late = [torch.autograd.grad(out.loss, [*model.parameters()]) for out in steps]  # after the replays that followed
    with recording.without_recordings():
        for step, (out, (loss, layers), gradients) in enumerate(zip(steps, kept, late, strict=True)):
            assert_same(out.loss, loss)
            if step != 1:
                assert_same([*out.free.state, *out.last, out.output], layers)
            assert_same(gradients, torch.autograd.grad(rule(model, *images(step)[:2]).loss, [*model.parameters()]))


def test_another_form_is_another_recording():
    model = build(widths=(4,))
    rule, (x, y, _) = rule_of(model), images()
    moved = nn.Parameter(model.layers[0].weight.detach().clone())

    def move():
        model.layers[0].weight = moved

    others = {
        "batch": lambda: rule(model, x[:3], y[:3]),
        "layout": lambda: rule(model, x.to(memory_format=torch.channels_last), y),
        "target": lambda: rule(model, x, torch.eye(3)[y]),
        "beta": lambda: replace(rule, beta=0.1)(model, x, y),
        "answer": lambda: model.answer(x),
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16)(rule)(model, x, y),
        "moved": lambda: (move(), rule(model, x, y)),
    }
    for count, other in enumerate((lambda: rule(model, x, y), *others.values()), 1):
        for _ in range(3):
            other()
        assert len(Tape.made) == count
    assert [tape.replays for tape in Tape.made] == [2] * (len(others) + 1)


def test_the_oldest_recording_is_forgotten():
    model = build(widths=(4,))
    counts = [*range(1, 1 + recording.MOST_KEPT)]
    for count in (*counts, *counts, 1):  # 1 is used again
        model.answer(images(count=count)[0])
    assert len(Tape.made) == recording.MOST_KEPT
    gone = weakref.ref(Tape.made.pop(1))
    model.answer(images(count=counts[-1] + 1)[0])
    assert gone() is None


def test_recordings_go_with_their_network():
    model = build()
    for _ in range(2):
        model.answer(images()[0])
    gone = weakref.ref(Tape.made.pop())
    assert gone() is not None
    del model
    assert gone() is None


def pruned():
    model = build()
    prune.l1_unstructured(model.layers[0], "weight", 0.5)
    return model


def transformed(model, x):
    return torch.func.jacrev(lambda scale: model.answer(x).sum() * scale)(torch.ones(()))


def frozen():
    return build().requires_grad_(False)


TOLERANT = Minimizer(sweeps=5, tolerance=0.5, compiled=True)
STEPS = {
    "sweeps that are not compiled": (build, lambda model, x, y: create_rule("c-ep")(model, x, y)),
    "a free phase that is not compiled": (
        build,
        lambda model, x, y: replace(rule_of(model), free=Minimizer())(model, x, y),
    ),
    "a tolerance": (build, lambda model, x, y: replace(rule_of(model), free=TOLERANT)(model, x, y)),
    "an answer to a tolerance": (build, lambda model, x, y: model.answer(x, TOLERANT)),
    "pruned weights": (pruned, lambda model, x, y: (rule_of(model)(model, x, y), model.answer(x))),
    "an input with a gradient": (build, lambda model, x, y: rule_of(model)(model, x.clone().requires_grad_(), y)),
    "no gradients": (build, lambda model, x, y: torch.no_grad()(rule_of(model))(model, x, y)),
    "backpropagation": (build, lambda model, x, y: create_rule("tbp", free=model.minimizer)(model, x, y)),
    "a trace": (build, lambda model, x, y: torch.jit.trace(model.eval(), x, check_trace=False)),
    "a frozen network": (frozen, lambda model, x, y: rule_of(model)(model, x, y)),
    "a transform": (build, lambda model, x, y: transformed(model, x)),
}


@pytest.mark.parametrize("case", STEPS)
def test_nothing_is_recorded_with(case):
    (make, step), (x, y, _) = STEPS[case], images()
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for _ in range(2):
            step(model, x, y)
    assert not Tape.made


def test_a_replay_reads_parameters_that_stand_in_for_a_networks_own():
    model, (x, *_) = build().eval(), images()
    own = dict(model.named_parameters())
    others = [{name: parameter.detach() * factor for name, parameter in own.items()} for factor in (0.9, 1.1)]
    for _ in range(3):
        for given in others:
            with recording.without_recordings():
                expected = torch.func.functional_call(model, given, (x,))
            assert_same(torch.func.functional_call(model, given, (x,)), expected)
    assert [tape.replays for tape in Tape.made] == [2, 2]


def test_interactions_by_autograd_are_not_recorded(dense):
    model, x = dense
    for _ in range(2):
        model.answer(x, Minimizer(compiled=True))
    assert not Tape.made


def test_what_cannot_be_recorded_runs_without_a_recording_and_says_so():
    class Watched(DCHN):
        def settle(self, free, minimizer=None):
            seen.append(float(free.energy.sum()))
            return super().settle(free, minimizer)

    seen = []
    model = Watched(widths=(4, 5), num_classes=3, in_chans=2, img_size=16, compiled=True)
    rule, (x, y, _) = rule_of(model), images()
    expected = rule(model, x, y).loss
    with pytest.warns(RuntimeWarning, match="runs without a recording: .*_local_scalar_dense.* is not permitted"):
        assert_same(rule(model, x, y).loss, expected)
    assert_same(rule(model, x, y).loss, expected)
    assert len(Tape.made) == 1


def test_a_loss_that_is_no_contrast_alone_runs_without_a_recording():
    class Decaying(type(create_rule("c-ep"))):
        def contrast(self, model, *given):
            loss, pair = super().contrast(model, *given)
            return loss + sum(p.square().sum() for p in model.parameters()), pair

    model = build()
    rule = Decaying(perturbed=Minimizer(sweeps=2, compiled=True))
    expected = everything(rule, model, *images())
    with pytest.warns(RuntimeWarning, match="the loss is no contrast of energies alone"):
        assert_same(everything(rule, model, *images()), expected)


def test_a_replay_refuses_what_a_step_refuses():
    model = build()
    rule, (x, y, _) = rule_of(model), images()
    for _ in range(3):
        out = rule(model, x, y)
    with pytest.raises(ValueError, match="NaN"):
        rule(model, x.clone().fill_(float("nan")), y)
    with pytest.raises(ValueError, match="NaN"):
        model.answer(x.clone().fill_(float("nan")))
    gradients = torch.autograd.grad(out.loss, [*model.parameters()], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradients[0].sum().backward()


def test_the_benchmark_has_compiled_rows_with_and_without_recordings():
    model, (x, y, _) = build(), images()
    counts = {}
    for row in variants(model, 0.25, [], True):
        before = len(Tape.made)
        for _ in range(2):
            row.predict(x)
            row.step(x, y)
        counts[row.name.rpartition(", ")[2]] = len(Tape.made) - before
    assert counts == {"compiled": 2, "no graph": 0}


def test_threads_take_turns_at_a_recording():
    model, answers = build(), {}
    batches = [images(step)[0] for step in range(2)]
    expected = [model.answer(x) for x in batches]
    for x in batches:
        model.answer(x)
    for _ in range(20):
        threads = [
            threading.Thread(target=lambda k=k, x=x: answers.update({k: model.answer(x)}))
            for k, x in enumerate(batches)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for k, answer in answers.items():
            torch.testing.assert_close(answer, expected[k])
    assert Tape.made
