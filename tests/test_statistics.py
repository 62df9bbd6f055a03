"""The statistics of a study against values that are known by hand."""

import sys
from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timm_ebl.tools.study.statistics import (
    consistent_mcnemar,
    holm,
    interval_of_mean,
    kendall_tau,
    mcnemar,
    percentiles,
    resample,
)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 5, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (4, 4, 1.0),
    ],
)
def test_mcnemars_test_is_that_of_tosses_counted_by_hand(first, second, p):
    assert mcnemar(first, second) == pytest.approx(p, rel=1e-15)
    assert mcnemar(second, first) == mcnemar(first, second)


@given(st.integers(0, 80), st.integers(0, 80))
def test_mcnemars_test_is_the_sum_of_binomial_probabilities(first, second):
    total = first + second
    tail = sum(comb(total, heads) for heads in range(min(first, second) + 1))
    assert mcnemar(first, second) == pytest.approx(min(1, 2 * tail / 2**total), rel=1e-14)


def test_mcnemars_test_holds_for_thousands_of_images():
    # Normal approximation with the correction for continuity: z = (|b - c| - 1) / sqrt(b + c).
    z = (5200 - 5000 - 1) / (10_200**0.5)
    normal = 2 * (1 - torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(z, dtype=torch.float64)))
    assert mcnemar(5000, 5200) == pytest.approx(float(normal), rel=1e-3)
    assert mcnemar(0, 5000) == sys.float_info.min  # 2^-4999 is below it


def masks(*counts):
    """Errors of two rules, one pair of numbers of images that one alone gets wrong for each seed."""
    first, second = torch.zeros(2, len(counts), 40, dtype=torch.bool)
    for seed, (b, c) in enumerate(counts):
        first[seed, :b] = True
        second[seed, 20 : 20 + c] = True
        first[seed, -1] = second[seed, -1] = True  # both are wrong: does not count
    return first, second


def test_a_rule_is_better_where_it_is_with_every_seed():
    assert consistent_mcnemar(*masks((0, 5), (0, 8))) == 2 / 32
    assert consistent_mcnemar(*masks((0, 8), (0, 0))) == 1.0
    assert consistent_mcnemar(*masks((0, 8), (8, 0))) == 1.0
    assert consistent_mcnemar(*masks((0, 8))) == 2 / 256


def test_holms_correction_is_that_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holms_correction_keeps_the_order_and_is_between_none_and_bonferronis(p):
    corrected = holm(p)
    assert all(a <= b <= min(1, len(p) * a) for a, b in zip(p, corrected, strict=True))
    ordered = [after for _, after in sorted(zip(p, corrected, strict=True))]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize(
    ("second", "tau"),
    [
        ([1, 2, 3, 4], 1.0),
        ([4, 3, 2, 1], -1.0),
        ([1, 2, 4, 3], 4 / 6),
        ([1, 1, 2, 3], 5 / (6 * 5) ** 0.5),  # one tie
    ],
)
def test_kendalls_tau_is_that_of_pairs_counted_by_hand(second, tau):
    first = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert float(kendall_tau(first, torch.tensor(second))) == pytest.approx(tau)
    assert float(kendall_tau(torch.tensor(second), first)) == pytest.approx(tau)
    assert kendall_tau(first, torch.ones(4)).isnan()


def test_the_interval_of_a_mean_is_students():
    assert interval_of_mean([1.0]) is None
    assert interval_of_mean([1.0, 3.0]) == pytest.approx((2 - 12.706, 2 + 12.706))  # sd / sqrt(2) is 1
    assert interval_of_mean([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert interval_of_mean([0.0, 1.0] * 50) == pytest.approx((0.5 - 0.1119, 0.5 + 0.1119), abs=1e-3)


@pytest.mark.parametrize("seeds", [2, 3, 5, 11])
def test_the_interval_of_a_mean_holds_it_95_times_of_100(seeds):
    samples = torch.randn(4000, seeds, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    held = sum(low <= 0 <= high for low, high in map(interval_of_mean, samples))
    assert held / 4000 == pytest.approx(0.95, abs=0.012)


def test_resamples_have_the_means_and_the_spread_of_the_sample():
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(2, 1, 400, generator=generator) < torch.tensor([0.3, 0.1])[:, None, None]
    drawn = resample(wrong.expand(2, 2, 400), 4000)
    for row, errors in zip(wrong, drawn.T, strict=True):
        share = float(row.double().mean())
        assert float(errors.mean()) == pytest.approx(100 * share, abs=0.2)
        assert float(errors.std()) == pytest.approx(100 * (share * (1 - share) / 400) ** 0.5, rel=0.05)


def test_resamples_are_paired_and_have_the_spread_of_seeds():
    wrong = (torch.arange(100) < 30).expand(2, 2, 100)
    first, second = resample(wrong, 500).T
    assert torch.equal(first, second)
    counts = torch.tensor([0, 10, 50])  # of 50 images, wrong with each seed
    alike = (torch.arange(50) < counts[:, None])[None]
    (errors,) = resample(alike, 8000).T
    seeds = 2.0 * counts.double()
    images = (seeds.mean() / 100 * (100 - seeds.mean())) / 50  # at most, of independent images
    assert float(errors.mean()) == pytest.approx(float(seeds.mean()), abs=1.5)
    assert float(seeds.var() / 3) * 0.95 < float(errors.var()) < 1.1 * float(seeds.var() / 3 + images)


def test_percentiles_leave_out_what_is_not_known():
    values = torch.cat([torch.arange(1001).double(), torch.tensor([float("nan")], dtype=torch.float64)])
    assert percentiles(values) == pytest.approx((25, 975))
    assert percentiles(torch.full((3,), float("nan"))) is None
