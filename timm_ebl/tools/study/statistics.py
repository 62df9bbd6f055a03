"""Statistics of paired results: the exact McNemar test, Holm's correction, Kendall's tau, a paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Interval", "consistent_mcnemar", "holm", "kendall_tau", "mcnemar", "percentiles", "resample"]

RESAMPLES = 2000
"""Resamples of a bootstrap."""

_CHUNK = 200
"""Resamples that are computed at once."""


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def mcnemar(first: int, second: int) -> float:
    """The exact two-sided McNemar test of two classifiers on the same images.

    Under the hypothesis that both err equally often, the images that one alone gets wrong are tosses of a fair coin:
    p = min(1, 2 P(X <= min(b, c))), X binomial of b + c tosses (McNemar, 1947).

    Args:
        first: Number b of images that the first alone gets wrong.
        second: Number c of images that the second alone gets wrong.
    """
    tosses, term, tail = first + second, 1, 0
    for heads in range(min(first, second) + 1):
        tail += term
        term = term * (tosses - heads) // (heads + 1)
    return min(1.0, 2 * tail / 2**tosses)


def consistent_mcnemar(first: Tensor, second: Tensor) -> float:
    """A test of whether one of two rules is better with every seed: the largest p of the seeds' McNemar tests.

    It is an intersection-union test: no assumption is made on how seeds depend on each other, and one seed without a
    difference is enough for a large p. Where the seeds do not agree on which rule is better, p is 1.

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


def resample(wrong: Sequence[dict[int, Tensor]], resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Errors (%) ``(B, R)`` of rows in bootstrap resamples of seeds and images, which are the same for all rows.

    Seeds and images are drawn independently of each other, each with replacement (a crossed, paired bootstrap). Where a
    row has none of the seeds that were drawn, its error is NaN.

    Args:
        wrong: For each row, which images ``(N,)`` it gets wrong, by seed.
        resamples: Number B of resamples.
        seed: Seed of the resamples.
    """
    generator = torch.Generator().manual_seed(seed)
    seeds = sorted({each for row in wrong for each in row})
    images = next(iter(wrong[0].values())).numel()
    there = torch.tensor([[each in row for each in seeds] for row in wrong]).double()
    stacked = torch.stack([row.get(each, torch.zeros(images)).float() for row in wrong for each in seeds])
    chosen = torch.randint(len(seeds), (resamples, len(seeds)), generator=generator)
    weights = torch.nn.functional.one_hot(chosen, len(seeds)).sum(1).double()
    errors = []
    for weight in weights.split(_CHUNK):
        rows = torch.randint(images, (len(weight), images), generator=generator)
        counts = torch.zeros(len(weight), images).scatter_add_(1, rows, torch.ones(1).expand_as(rows))
        means = (counts @ stacked.T).double().view(-1, len(wrong), len(seeds)) * 100 / images
        errors.append((means * weight[:, None]).sum(2) / (weight[:, None] * there).sum(2))
    return torch.cat(errors)


def percentiles(values: Tensor) -> Interval | None:
    """The interval between the 2.5th and the 97.5th percentile of resampled values; ``None`` where there are none."""
    values = values[~values.isnan()]
    if not len(values):
        return None
    return Interval(*torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist())
