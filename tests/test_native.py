"""Private names of PyTorch: without each of them the public way gives the same numbers."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from timm_ebl.kernels import native
from timm_ebl.models import interactions as module_of_interactions
from timm_ebl.models.interactions import ConvInteraction, DenseInteraction


class Without:
    """Something that lacks one name."""

    def __init__(self, thing, name):
        self.thing, self.name = thing, name

    def __getattr__(self, name):
        if name == self.name:
            raise AttributeError(name)
        return getattr(self.thing, name)

    def __call__(self):
        return self


@pytest.fixture(params=[None, *native.PRIVATE], ids=lambda path: path or "all names there")
def bereft(request, monkeypatch):
    """The module as it is where PyTorch lacks a private name."""
    spec = importlib.util.spec_from_file_location("bereft", native.__file__)
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        if request.param:
            *outer, owner, name = request.param.split(".")
            parent = torch
            for part in outer:
                parent = getattr(parent, part)
            patch.setattr(parent, owner, Without(getattr(parent, owner), name))
        spec.loader.exec_module(module)
    return module


def images(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


def test_every_private_name_is_there_today():
    assert all(native.PRIVATE.values())


def test_a_name_that_is_gone_is_seen_to_be_gone(bereft, request):
    path = request.node.callspec.params["bereft"]
    assert [name for name, there in bereft.PRIVATE.items() if not there] == ([path] if path else [])


def test_pooling_and_its_adjoints(bereft, generator):
    for window, image in ((2, (6, 8)), (3, (7, 11))):
        x = images(generator, 2, 3, *image).requires_grad_()
        for pooled, unpool in (
            (F.max_pool2d(x, window, return_indices=True), bereft.unpool_max),
            ((F.avg_pool2d(x, window), None), bereft.unpool_average),
        ):
            values, route = pooled
            upper = images(generator, *values.shape)
            (expected,) = torch.autograd.grad((values * upper).sum(), x, retain_graph=True)
            arguments = (window, image) if route is None else (route, window, image)
            for given in (upper, upper.contiguous()):
                assert torch.equal(unpool(given, *arguments, None), expected)
                into = torch.full_like(expected, torch.nan)
                assert unpool(given, *arguments, into) is into
                assert torch.equal(into, expected)
            upper.requires_grad_()
            (back,) = torch.autograd.grad((unpool(upper, *arguments, None) * x).sum(), upper)
            torch.testing.assert_close(back, values)
        values, route = bereft.max_pool(x, window)
        assert torch.equal(values, F.max_pool2d(x, window))
        assert torch.equal(route, F.max_pool2d(x, window, return_indices=True)[1])


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_and_their_gradient(bereft, generator, stride):
    x, weight = images(generator, 2, 3, 7, 8), images(generator, 4, 3, 3, 3).requires_grad_()
    steps, padding = [stride, stride], [1, 1]
    expected = F.conv2d(x, weight, None, steps, padding)
    upper = images(generator, *expected.shape)
    (gradient,) = torch.autograd.grad((expected * upper).sum(), weight)
    found = bereft.convolution_weight_gradient(x, upper, weight, steps, padding)
    torch.testing.assert_close(found, gradient, atol=1e-12, rtol=1e-12)
    if torch.backends.mkldnn.is_available():
        single = weight.detach().float()
        packed = bereft.pack_convolution(single, steps, padding, list(x.shape))
        bias = torch.ones(4)
        found = bereft.packed_convolution(x.float(), packed, bias, steps, padding)
        torch.testing.assert_close(found, F.conv2d(x.float(), single, bias, steps, padding), atol=1e-5, rtol=1e-5)


def test_bfloat16_is_packed_only_where_that_is_known_to_be_served(bereft):
    assert bereft.has_bfloat16_units() in (False, native.has_bfloat16_units())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_version_tells_of_a_change_in_place(bereft, dtype):
    tensor = torch.arange(6).to(dtype).view(2, 3)
    before = bereft.version_of(tensor)
    assert bereft.version_of(tensor) == before
    tensor.t()[1] += 1
    assert bereft.version_of(tensor) != before
    with torch.inference_mode():
        assert bereft.version_of(torch.zeros(2)) == 0
    assert bereft.version_of(nn.Parameter(torch.empty(0))) == bereft.version_of(nn.Parameter(torch.empty(0)))


def test_wrong_values_are_refused_at_once_on_a_cpu(bereft):
    bereft.require(torch.tensor(True), "Wrong.")
    with pytest.raises(ValueError, match=r"^Wrong\.$"):
        bereft.require(torch.tensor(False), "Wrong.")


def test_transforms_of_functions_are_seen(bereft):
    seen = []

    def look(x):
        seen.append((bereft.is_batched(x), bereft.is_func_transform_active()))
        return x.sum()

    look(torch.rand(3))
    look(torch.rand(3, device="meta"))
    torch.func.vmap(look)(torch.rand(2, 3))
    torch.func.grad(look)(torch.rand(3))
    assert seen == [(False, False), (False, False), (True, True), (False, True)]


@pytest.mark.parametrize("kind", [ConvInteraction, DenseInteraction])
def test_pruning_sets_the_weight_anew(bereft, monkeypatch, kind):
    interaction = kind(4, 3)
    prune.random_unstructured(interaction, "weight", 0.5)
    monkeypatch.setattr(module_of_interactions, "renew_weight", bereft.renew_weight)
    with torch.no_grad():
        interaction.weight_orig.add_(1)
    assert torch.equal(interaction.tensors()[0], interaction.weight_orig * interaction.weight_mask)


def test_a_module_with_a_hook_is_watched(bereft):
    interaction = ConvInteraction(2, 3)
    prune.random_unstructured(interaction, "weight", 0.5)
    assert bereft.is_watched(interaction) is not bereft.PRIVATE["nn.Module._forward_pre_hooks"]
    interaction.register_forward_hook(lambda *_: None)
    assert bereft.is_watched(interaction)
