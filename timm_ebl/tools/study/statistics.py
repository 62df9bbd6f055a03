"""Statistics of paired results: McNemar's exact test, Holm's correction, an interval over seeds, Kendall's tau."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Interval",
    "consistent_mcnemar",
    "holm",
    "interval_of_mean",
    "kendall_tau",
    "mcnemar",
    "percentiles",
    "resample",
]

RESAMPLES = 2000
"""Resamples of a bootstrap."""

_CHUNK = 200
"""Resamples that are computed at once."""


_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5th percentiles of Student's t distribution with 1 to 10 degrees of freedom."""


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def mcnemar(first: int, second: int) -> float:
    """The exact two-sided McNemar test of two classifiers on the same images.

    Under the hypothesis that both err equally often, the images that one alone gets wrong are tosses of a fair coin:
    p = min(1, 2 P(X <= min(b, c))), X binomial of b + c tosses (McNemar, 1947). A p below the smallest normal number of
    float64, 2.2e-308, is that number.

    Args:
        first: Number b of images that the first alone gets wrong.
        second: Number c of images that the second alone gets wrong.
    """
    tosses, term, tail = first + second, 1, 0
    for heads in range(min(first, second) + 1):
        tail += term
        term = term * (tosses - heads) // (heads + 1)
    return min(1.0, max(sys.float_info.min, 2 * tail / 2**tosses))


def consistent_mcnemar(first: Tensor, second: Tensor) -> float:
    """A test of whether one of two rules is better with each of these seeds: the largest p of their McNemar tests.

    It is an intersection-union test: no assumption is made on how seeds depend on each other, and one seed without a
    difference is enough for a large p. Where the seeds do not agree on which rule is better, p is 1. It is about these
    networks and all images of their kind, and says nothing of other seeds (`interval_of_mean` does).

    Args:
        first: Which images the first rule gets wrong, ``(S, N)``, for each seed.
        second: The same of the second rule, for the same seeds and images.
    """
    pairs = [(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in zip(first, second, strict=True)]
    if len({b > c for b, c in pairs}) > 1 or any(b == c for b, c in pairs):
        return 1.0
    return max(mcnemar(b, c) for b, c in pairs)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of the p of several tests (Holm, 1979).

    With p_(1) <= .. <= p_(m), the corrected p_(k) is the largest of min(1, (m - j + 1) p_(j)) over j <= k.
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def interval_of_mean(values: Sequence[float]) -> Interval | None:
    """Student's 95 % interval of the mean of a normal quantity, from a sample of S: mean +- t sd / sqrt(S).

    t has S - 1 degrees of freedom; with more than ten, it is that of ten, which is larger.

    Args:
        values: The sample; of fewer than two there is no interval.
    """
    if len(values) < 2:
        return None
    half = _STUDENT[min(len(values) - 1, len(_STUDENT)) - 1] * stdev(values) / len(values) ** 0.5
    return Interval(fmean(values) - half, fmean(values) + half)


def kendall_tau(first: Tensor, second: Tensor) -> Tensor:
    """Kendall's tau-b, rank agreement with a correction for ties (Kendall, 1945), NaN where all of one are equal.

    tau = sum_{i<j} sign(x_i - x_j) sign(y_i - y_j) / sqrt(n_x n_y), n the pairs that are not tied.

    Args:
        first: Values ``(..., R)``.
        second: Values ``(..., R)`` to compare them with.
    """
    upper = torch.triu_indices(first.shape[-1], first.shape[-1], 1)
    x, y = ((values[..., upper[0]] - values[..., upper[1]]).sign() for values in (first.double(), second.double()))
    return (x * y).sum(-1) / (x.abs().sum(-1) * y.abs().sum(-1)).sqrt()


def resample(wrong: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Errors (%) ``(B, R)`` of rules in bootstrap resamples of seeds and images, which are the same for all rules.

    Seeds and images are drawn independently of each other, each with replacement (a crossed, paired bootstrap). Of S
    seeds S - 1 are drawn, so that the variance over them is that of a mean of S (the rescaled bootstrap of Rao and Wu,
    1988); S drawn ones would have (S - 1) / S of it.

    Args:
        wrong: Which images each rule gets wrong with each seed, ``(R, S, N)``, of at least two seeds.
        resamples: Number B of resamples.
        seed: Seed of the resamples.
    """
    generator = torch.Generator().manual_seed(seed)
    rules, seeds, images = wrong.shape
    chosen = torch.randint(seeds, (resamples, seeds - 1), generator=generator)
    weights = torch.nn.functional.one_hot(chosen, seeds).double().mean(1)
    errors = []
    for weight in weights.split(_CHUNK):
        rows = torch.randint(images, (len(weight), images), generator=generator)
        counts = torch.zeros(len(weight), images).scatter_add_(1, rows, torch.ones(1).expand_as(rows))
        means = (counts @ wrong.flatten(0, 1).float().T).double().view(-1, rules, seeds) * 100 / images
        errors.append((means * weight[:, None]).sum(2))
    return torch.cat(errors)


def percentiles(values: Tensor) -> Interval | None:
    """The interval between the 2.5th and the 97.5th percentile of resampled values; ``None`` where there are none."""
    values = values[~values.isnan()]
    if not len(values):
        return None
    return Interval(*torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist())
