"""What cannot be right is refused at once, in a sentence that says what and what else."""

import math

import pytest
import timm
import torch
from oracles import error, gradient

from timm_ebl import (
    DCHN,
    FREE,
    Minimizer,
    Nudged,
    create_backward,
    create_rule,
    equilibrium,
    list_backwards,
    list_rules,
    register_rule,
)
from timm_ebl.rules.contrastive import CoupledLearning
from timm_ebl.training.task import RuleTask


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: create_rule("ep"), ["'ep'", "cl", "p-ep", "c-cpl", "rbp"]),
        (lambda: create_rule("c-ep", bta=0.1), ["'bta'", "beta", "perturbed"]),
        (lambda: create_rule("cl", beta=0.5), ["'cl'", "'beta'", "free"]),
        (lambda: create_rule("tbp", beta=0.5), ["'tbp'", "'beta'"]),
        (lambda: create_rule("p-ep", beta=0), ["beta", "positive", "0"]),
        (lambda: create_rule("c-cpl", beta=-0.1), ["beta", "positive", "-0.1"]),
        (lambda: create_rule("p-ep", beta=math.nan), ["beta", "nan"]),
        (lambda: create_rule("p-ep", beta="0.1"), ["beta", "'0.1'"]),
        (lambda: create_rule("p-cpl", beta=math.inf), ["beta", "inf"]),
        (lambda: create_rule("p-ep", beta=True), ["beta", "True"]),
        (lambda: create_rule("rbp", linear_response=True), ["'rbp'", "'linear_response'", "free", "adjoint"]),
        (lambda: create_rule("n-ep", beta=1.0), ["beta", "below 1"]),
        (lambda: create_rule("c-ep", beta=1.5), ["beta", "below 1"]),
        (lambda: Minimizer(order="random"), ["'random'", "asynchronous", "synchronous", "forward"]),
        (lambda: Minimizer(start="one"), ["'one'", "zero", "feedforward"]),
        (lambda: Minimizer(sweeps=0), ["sweeps", "at least 1"]),
        (lambda: Minimizer(sweeps=2.5), ["sweeps", "2.5"]),
        (lambda: Minimizer(omega=2), ["omega", "between 0 and 2", "not at 2."]),
        (lambda: Minimizer(omega=0), ["omega", "between 0 and 2", "not at 0."]),
        (lambda: Minimizer(omega=()), ["omega", "between 0 and 2", "not at ()."]),
        (lambda: Minimizer(omega=(1.9, 2)), ["omega", "between 0 and 2", "not at (1.9, 2)."]),
        (lambda: Minimizer(omega=math.nan), ["omega", "nan"]),
        (lambda: Minimizer(tolerance=0), ["tolerance", "positive"]),
        (lambda: Minimizer(tolerance=-1e-3), ["tolerance", "positive", "-0.001"]),
        (lambda: Minimizer(tolerance=math.nan), ["tolerance", "nan"]),
        (lambda: Minimizer(tolerance=math.inf), ["tolerance", "inf"]),
        (lambda: DCHN(order="random"), ["'random'", "asynchronous", "synchronous", "forward"]),
        (lambda: DCHN(sweeps=0), ["sweeps", "at least 1"]),
        (lambda: DCHN(widths=()), ["widths"]),
        (lambda: DCHN(widths=(4, 0)), ["widths", "positive"]),
        (lambda: DCHN(gains=(0.5, 0.5)), ["gains", "5"]),
        (lambda: DCHN(gains=0), ["gains", "positive"]),
        (lambda: DCHN(img_size=8), ["8", "too small"]),
        (lambda: DCHN(global_pool="avg"), ["global_pool", "avg"]),
        (lambda: DCHN(num_classes=-1), ["num_classes", "-1"]),
        (lambda: DCHN(in_chans=0), ["in_chans", "0"]),
        (lambda: DCHN(widths=8), ["widths", "8"]),
        (lambda: DCHN(img_size=(16,)), ["img_size", "(16,)"]),
        (lambda: DCHN(gains=math.nan), ["gains", "nan"]),
        (lambda: DCHN(bias_gain=-1), ["bias_gain", "-1"]),
        (lambda: DCHN(kernel_size=2), ["kernel_size", "odd"]),
        (lambda: Minimizer(omega="1"), ["omega", "'1'"]),
        (lambda: Minimizer(tolerance="x"), ["tolerance", "'x'"]),
        (lambda: Minimizer(order=["a"]), ["['a']", "asynchronous"]),
        (lambda: Minimizer(sweeps=True), ["sweeps", "True"]),
        (lambda: Nudged(torch.zeros(1, 2), -1.0), ["above -1", "-1.0"]),
        (lambda: Minimizer(compiled="yes"), ["compiled is True or False", "'yes'"]),
        (lambda: DCHN(compiled="False"), ["compiled is True or False", "'False'"]),
        (lambda: DCHN(pool=2.0), ["pool", "whole number", "2.0"]),
        (lambda: DCHN(kernel_size=3.0), ["kernel_size", "whole number", "3.0"]),
        (lambda: DCHN(widths=(4.0, 4)), ["widths", "(4.0, 4)"]),
        (lambda: DCHN(widths="48"), ["widths", "'48'"]),
        (lambda: DCHN(num_classes=10.0), ["num_classes", "10.0"]),
        (lambda: DCHN(in_chans=True), ["in_chans", "True"]),
        (lambda: DCHN(img_size=32.0), ["img_size", "32.0"]),
        (lambda: DCHN(img_size=None), ["img_size", "None"]),
        (lambda: DCHN(gains=True), ["gains", "True"]),
        (lambda: DCHN(bias_gain="x"), ["bias_gain", "'x'"]),
        (lambda: DCHN(backward=None), ["backward", "ep, tbp, rbp"]),
        (lambda: create_rule("c-ep", linear_response="False"), ["linear_response is True or False", "'False'"]),
        (lambda: create_rule("p-ep", companion="no"), ["companion is True, False or None", "'no'"]),
        (lambda: create_rule("c-ep", damped=1), ["damped is True or False", "1"]),
        (lambda: create_backward("ep", linear_response="no"), ["linear_response is True or False", "'no'"]),
        (lambda: register_rule("c-ep", CoupledLearning), ["'c-ep'", "own rules", "replace=True"]),
        (lambda: register_rule("mine", CoupledLearning, bta=1), ["'mine'", "'bta'", "beta"]),
    ],
)
def test_a_wrong_setting_is_refused(call, words):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the words are checked below)
        call()
    message = str(refusal.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: create_rule("c-ep", perturbed=3), r"perturbed is a timm_ebl.Minimizer, not 3"),
        (lambda: create_rule("rbp", free=3), r"free is a timm_ebl.Minimizer, not 3"),
        (lambda: create_backward("tbp", unrolled="x"), r"unrolled is a timm_ebl.Minimizer, not 'x'"),
        (lambda: create_rule("rbp", adjoint=0.5), r"adjoint is a timm_ebl.Minimizer, not 0.5"),
        (lambda: create_backward("ep", nudging="positive"), r"nudging is a timm_ebl.Nudging, .* not 'positive'"),
        (lambda: register_rule("mine", Minimizer), r"derived from timm_ebl.Rule"),
    ],
)
def test_what_is_no_minimiser_or_rule_is_refused(call, words):
    with pytest.raises(TypeError, match=words):
        call()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: None, "not NoneType"),
        (list, "not list"),
        (lambda x: x.numpy(), "not ndarray"),
        (lambda x: x.to(torch.uint8), r"not of torch.uint8: scale and normalise"),
        (lambda x: x > 0, r"not of torch.bool"),
        (lambda x: x + 0j, r"not of torch.complex128"),
    ],
)
def test_what_is_no_image_is_refused_everywhere(make_dchn, batch, spoil, words):
    model, (x, y) = make_dchn(), batch
    wrong = spoil(x)
    for call in (model, model.relax, model.answer, lambda x: create_rule("c-ep")(model, x, y)):
        with pytest.raises(TypeError, match=words):
            call(wrong)


class Bare(torch.nn.Module):
    """A model without an energy."""


@pytest.mark.parametrize("name", list_rules())
@pytest.mark.parametrize("model", [timm.create_model("resnet18", device="meta"), Bare()], ids=["timm", "torch"])
def test_a_rule_of_a_model_without_energy_is_refused(name, model):
    words = f"A {type(model).__name__} has no energy to relax: choose one of timm.list_models.*'pcn\\*'.*, or derive"
    rule, x, y = create_rule(name), torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
    for call in (lambda: rule(model, x, y), lambda: RuleTask(model, rule, verbose=False)):
        with pytest.raises(TypeError, match=words) as refusal:
            call()
        assert "\n" not in str(refusal.value)
    with pytest.raises(TypeError, match=words):
        equilibrium(model, x, create_backward("ep"))


@pytest.mark.parametrize("beta", [1e-300, 1e-8, 1e-5])
@pytest.mark.parametrize("name", ["p-ep", "n-ep", "c-ep", "p-cpl", "c-cpl"])
def test_a_beta_of_which_rounding_leaves_noise_is_refused(make_live, batch, name, beta):
    model, (x, y) = make_live(dtype=torch.float32), batch
    with pytest.raises(ValueError, match=rf"In float32, rounding leaves a beta of 1.2e-04 to .* not {beta}"):
        create_rule(name, beta=beta)(model, x.float(), y)
    model.backward = create_backward("ep", beta=beta)
    with pytest.raises(ValueError, match="In float32"):
        model(x.float()).sum().backward()
    if beta > 1e-12:
        assert create_rule(name, beta=beta)(model.double(), x, y).loss.isfinite()


@pytest.mark.parametrize("name", ["n-ep", "c-ep"])
def test_a_beta_that_is_1_to_rounding_is_refused(make_live, batch, name):
    model, (x, y) = make_live(dtype=torch.float32), batch
    with pytest.raises(ValueError, match=r"In float32, a negative nudge needs beta below 1 - 1.2e-04; got 0.999999999"):
        create_rule(name, beta=0.999999999)(model, x.float(), y)
    assert create_rule("p-ep", beta=0.999999999)(model, x.float(), y).loss.isfinite()


def test_the_smallest_beta_allowed_still_has_the_gradient(make_live, batch):
    model, (x, y) = make_live(), batch
    single = make_live(dtype=torch.float32)
    single.load_state_dict(model.state_dict())
    for name in ("c-ep", "p-ep", "n-ep"):
        expected = gradient(model, create_rule(name, beta=1.3e-4)(model, x, y).loss)
        found = gradient(single, create_rule(name, beta=1.3e-4)(single, x.float(), y).loss)
        assert error(found.double(), expected) < 0.05


def infinite(x):
    return torch.full_like(x, math.inf)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: x[:, :1], ["(B, 2, 16, 16)", "(6, 1, 16, 16)"]),
        (lambda x: x[..., :15], ["(B, 2, 16, 16)", "(6, 2, 16, 15)"]),
        (lambda x: x[0], ["(B, 2, 16, 16)", "(2, 16, 16)"]),
        (lambda x: x * math.nan, ["NaN"]),
        (infinite, ["infinite"]),
    ],
)
def test_a_wrong_image_is_refused_everywhere(make_dchn, batch, spoil, words):
    model, (x, y) = make_dchn(), batch
    x = spoil(x)
    for call in (model, model.relax, lambda x: create_rule("c-ep")(model, x, y)):
        with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the words are checked below)
            call(x)
        assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 1, 2, 3, 0, 1]), ["0 .. 2", "0 .. 3"]),
        (torch.tensor([0, 1, 2, -1, 0, 1]), ["0 .. 2", "-1"]),
        (torch.tensor([0, 1]), ["6 whole numbers", "(2,)"]),
        (torch.zeros(6), ["6 whole numbers", "float32"]),
        (torch.zeros(6, 4), ["(6, 3)", "(6, 4)"]),
        (torch.full((6, 3), math.nan), ["NaN"]),
        (torch.eye(3)[[0, 1, 2, 0, 1, 2]] / 0, ["infinite"]),
        (torch.zeros(6, dtype=torch.int64, device="meta"), ["labels are on meta", "output on cpu"]),
    ],
)
@pytest.mark.parametrize("rule", ["c-ep", "cl", "tbp", "rbp"])
def test_wrong_labels_are_refused(make_dchn, batch, rule, labels, words):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the words are checked below)
        create_rule(rule)(make_dchn(), batch[0], labels)
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "not NoneType"),
        ([0, 1, 2, 0, 1, 2], r"not list: torch.as_tensor"),
        (torch.zeros(6, dtype=torch.bool), r"not torch.bool"),
        (torch.eye(3)[[0, 1, 2, 0, 1, 2]].bool(), r"not torch.bool"),
        (torch.eye(3)[[0, 1, 2, 0, 1, 2]] + 0j, r"not torch.complex64"),
    ],
)
@pytest.mark.parametrize("rule", ["c-ep", "cl", "tbp", "rbp"])
def test_labels_of_another_kind_are_refused(make_dchn, batch, rule, labels, words):
    with pytest.raises(TypeError, match=words):
        create_rule(rule)(make_dchn(), batch[0], labels)


@pytest.mark.parametrize("name", list_rules())
def test_an_empty_batch_has_an_answer_and_no_rule(make_dchn, batch, name):
    model, (x, y) = make_dchn(backward=name if name in list_backwards() else "ep"), batch
    output = model(x[:0])
    assert output.shape == (0, 3)
    output.sum().backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())
    with pytest.raises(ValueError, match="The batch is empty"):
        create_rule(name)(model, x[:0], y[:0])


def test_an_input_on_another_device_is_refused(make_dchn, batch):
    with pytest.raises(ValueError, match="input is on meta and the network on cpu"):
        make_dchn()(batch[0].to("meta"))


def test_a_start_that_is_no_state_is_refused(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    state = model.relax(x).state
    for start, words in (
        (3, "not int"),
        (0, "not int"),
        (False, "not bool"),
        ({}, "not dict"),
        (x, "not Tensor"),
        (x.numpy(), "not ndarray"),
        ((None, *state[1:]), "not tuple"),
        (tuple(layer.long() for layer in state), r"real numbers, not \['torch.int64'"),
    ):
        with pytest.raises(TypeError, match=words):
            model.relax(x, start)
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="The start holds NaN or infinite"):
            model.relax(x, (state[0] * 0 + wrong, *state[1:]))


def test_a_start_that_does_not_fit_is_refused(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    state = model.relax(x[:3]).state
    with pytest.raises(ValueError, match=r"\(3, 4, 8, 8\).*\(6, 4, 8, 8\)"):
        model.relax(x, state)
    for empty in ((), []):
        with pytest.raises(ValueError, match=r"layers of shapes \[\]; this input needs"):
            model.relax(x, empty)
    with pytest.raises(ValueError, match="a layer on meta, and the input is on cpu"):
        model.relax(x[:3], (state[0].to("meta"), *state[1:]))
    with pytest.raises(ValueError, match=r"'warm'.*zero, feedforward"):
        model.relax(x, "warm")


def test_a_response_starts_from_a_relaxation_under_the_same_parameters(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    for start in (None, model.relax(x).state, make_dchn(seed=1).relax(x)):
        with pytest.raises(ValueError, match="starts from a free relaxation"):
            model.respond(start, FREE, Minimizer())
