"""Convolutions of every kind and size, and states for them."""

import itertools

import torch

from timm_ebl.models.interactions import AveragePooled, ConvInteraction

SIZES = list(itertools.product((1, 3, 5), (1, 2), (1, 2, 3)))
CONVOLUTIONS = {
    f"{kind.__name__}, kernel {kernel}, stride {stride}, pool {pool}": (kind, (2, 3, kernel, pool, stride))
    for kind in (ConvInteraction, AveragePooled)
    for kernel, stride, pool in SIZES
}
IMAGE = (11, 8)


def build(kind, arguments, generator, **options):
    interaction = kind(*arguments, **options)
    interaction.initialise(1.5, 0.5, generator)
    return interaction


def near_copies(shape, apart, generator, dtype=torch.float64):
    """Two copies of a batch of states, a small step apart."""
    first = torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.cat([first, first + apart * torch.randn(shape, generator=generator, dtype=torch.float64)]).to(dtype)
