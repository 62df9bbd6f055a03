"""What cannot be right is refused at once, in a sentence that says what and what else."""

import math

import pytest
import timm
import torch

from timm_ebl import DCHN, Minimizer, Nudged, create_rule


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: create_rule("ep"), ["'ep'", "cl", "p-ep", "c-cpl", "rbp"]),
        (lambda: create_rule("c-ep", bta=0.1), ["'bta'", "beta", "second"]),
        (lambda: create_rule("cl", beta=0.5), ["'cl'", "'beta'", "free"]),
        (lambda: create_rule("tbp", beta=0.5), ["'tbp'", "'beta'"]),
        (lambda: create_rule("p-ep", beta=0), ["beta", "positive", "0"]),
        (lambda: create_rule("c-cpl", beta=-0.1), ["beta", "positive", "-0.1"]),
        (lambda: create_rule("p-ep", beta=math.nan), ["beta", "nan"]),
        (lambda: create_rule("p-ep", beta="0.1"), ["beta", "'0.1'"]),
        (lambda: create_rule("p-cpl", beta=math.inf), ["beta", "inf"]),
        (lambda: create_rule("p-ep", beta=True), ["beta", "True"]),
        (lambda: create_rule("rbp", hold_routes=True), ["'rbp'", "'hold_routes'", "free", "second"]),
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
    ],
)
def test_a_wrong_setting_is_refused(call, words):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the words are checked below)
        call()
    message = str(refusal.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_an_unknown_model_argument_is_refused():
    with pytest.raises(TypeError, match="nonsense"):
        timm.create_model("dchn_tiny_mnist", nonsense=1)


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
    ],
)
@pytest.mark.parametrize("rule", ["c-ep", "cl", "tbp", "rbp"])
def test_wrong_labels_are_refused(make_dchn, batch, rule, labels, words):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the words are checked below)
        create_rule(rule)(make_dchn(), batch[0], labels)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_a_start_that_does_not_fit_is_refused(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    state = model.relax(x[:3]).state
    with pytest.raises(ValueError, match=r"\(3, 4, 8, 8\).*\(6, 4, 8, 8\)"):
        model.relax(x, state)
    with pytest.raises(ValueError, match=r"'warm'.*zero, feedforward"):
        model.relax(x, "warm")


def test_routes_cannot_be_held_without_a_relaxation_of_the_input(make_dchn, batch):
    model, (x, _) = make_dchn(), batch
    for start in (None, model.relax(x).state, model.relax(x + 1)):
        with pytest.raises(ValueError, match="Routes"):
            model.relax(x, start, hold_routes=True)
