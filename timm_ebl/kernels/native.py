"""Private names of PyTorch, each with a public way to do the same where the name is missing.

Only `training.memory`, which counts memory for the benchmark, uses others. `PRIVATE` lists those of this module; they
are looked up once, when it is imported.
"""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = [
    "PRIVATE",
    "convolution_weight_gradient",
    "has_bfloat16_units",
    "is_batched",
    "is_exporting",
    "is_func_transform_active",
    "is_watched",
    "max_pool",
    "pack_convolution",
    "packed_convolution",
    "place_of",
    "renew_weight",
    "require",
    "unpool_average",
    "unpool_max",
    "version_of",
]

is_exporting = getattr(torch.compiler, "is_exporting", bool)  # PyTorch 2.6 has none
"""Whether `torch.export` is under way."""

PRIVATE: dict[str, bool] = {}
"""The private names, below ``torch``, and whether they are there."""


def _look_up(path: str):
    """What a private name stands for, or ``None``; of the attributes of a module those of an instance."""
    found = torch
    for name in path.split("."):
        found = found() if found is nn.Module else found
        found = getattr(found, name, None)
    PRIVATE[path] = found is not None
    return found


def _bare(operator, overload: str):
    """An operator without its Python wrapper, which would cost a call in every product; ``None`` if it is missing."""
    found = getattr(operator, overload, None)
    return getattr(found, "_op", found)


_IS_BATCHED = _look_up("_C._functorch.is_batchedtensor")
_INTERPRETERS = _look_up("_C._functorch.peek_interpreter_stack")
_MAX_POOL = _look_up("_C._nn.max_pool2d_with_indices")
_REORDER = _look_up("_C._nn.mkldnn_reorder_conv2d_weight")
_REQUIRE = _look_up("ops.aten._assert_async")
_UNPOOL_AVERAGE = _look_up("ops.aten.avg_pool2d_backward")
_UNPOOL_AVERAGE_INTO = _bare(_UNPOOL_AVERAGE, "grad_input")
_UNPOOL_MAX = _look_up("ops.aten.max_pool2d_with_indices_backward")
_UNPOOL_MAX_INTO = _bare(_UNPOOL_MAX, "grad_input")
_CONVOLUTION_BACKWARD = _look_up("ops.aten.convolution_backward")
_CONVOLVE = _bare(_look_up("ops.mkldnn._convolution_pointwise"), "default")
_HAS_BFLOAT16 = _look_up("ops.mkldnn._is_mkldnn_bf16_supported")
_VERSION = _look_up("Tensor._version")
_HAS_HOOKS = _look_up("nn.Module._forward_pre_hooks") is not None
_PACKS = _REORDER is not None and _CONVOLVE is not None
_ONES = [1, 1]


def pack_convolution(weight: Tensor, stride: list[int], padding: list[int], lower: list[int]) -> Tensor:
    """A weight ``(C', C, h, w)`` as oneDNN wants it for input of a shape ``(B, C, H, W)``."""
    if not _PACKS:
        return weight.contiguous(memory_format=torch.channels_last)
    return _REORDER(weight.contiguous().to_mkldnn(), padding, stride, _ONES, 1, lower)


def packed_convolution(x: Tensor, packed: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    """The convolution by a weight that `pack_convolution` packed, without autograd."""
    if not _PACKS:
        return F.conv2d(x, packed, bias, stride, padding)
    return _CONVOLVE(x, packed, bias, padding, stride, _ONES, 1, "none", (), "")


def convolution_weight_gradient(
    lower: Tensor, upper: Tensor, weight: Tensor, stride: list[int], padding: list[int]
) -> Tensor:
    """Gradient of ``sum_b <upper_b, weight * lower_b>`` in the weight, channels last."""
    if _CONVOLUTION_BACKWARD is None:
        return torch.nn.grad.conv2d_weight(lower, weight.shape, upper, stride, padding)
    layout, zeros, needed = torch.empty_like(weight, memory_format=torch.channels_last), [0, 0], [False, True, False]
    backward = _CONVOLUTION_BACKWARD.default
    return backward(upper, lower, layout, None, stride, padding, _ONES, False, zeros, 1, needed)[1]


def max_pool(x: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """The largest value of each window, and its position in the image."""
    if _MAX_POOL is None:
        return F.max_pool2d(x, window, return_indices=True)
    return _MAX_POOL(x, (window, window))


def unpool_max(upper: Tensor, route: Tensor, window: int, image: tuple[int, int], into: Tensor | None) -> Tensor:
    """Every value at its position in an image, zeros elsewhere.

    Args:
        upper: The values ``(B, C, H', W')``.
        route: Their positions, as `max_pool` gives them.
        window: Side of the window.
        image: ``(H, W)``.
        into: Where to write the result, outside autograd; ``None`` for a new tensor.
    """
    if _UNPOOL_MAX is None:
        unpooled = F.max_unpool2d(upper, route, window, output_size=list(image))
        return unpooled if into is None else into.copy_(unpooled)
    sides = (window, window)
    if into is not None:
        return _UNPOOL_MAX_INTO(upper, into, sides, sides, (0, 0), (1, 1), False, route, grad_input=into)
    return _UNPOOL_MAX.default(upper, _images_like(upper, image), sides, sides, (0, 0), (1, 1), False, route)


def unpool_average(upper: Tensor, window: int, image: tuple[int, int], into: Tensor | None) -> Tensor:
    """Every value spread over its window of an image, the adjoint of average pooling; see `unpool_max`."""
    if _UNPOOL_AVERAGE is None:
        spread = (upper / window**2).repeat_interleave(window, 2).repeat_interleave(window, 3)
        unpooled = F.pad(spread, (0, image[1] - spread.shape[3], 0, image[0] - spread.shape[2]))
        return unpooled if into is None else into.copy_(unpooled)
    sides = (window, window)
    if into is not None:
        return _UNPOOL_AVERAGE_INTO(upper, into, sides, sides, (0, 0), False, True, None, grad_input=into)
    return _UNPOOL_AVERAGE.default(upper, _images_like(upper, image), sides, sides, (0, 0), False, True, None)


def _images_like(upper: Tensor, image: tuple[int, int]) -> Tensor:
    size = (*upper.shape[:2], *image)
    return torch.empty(size, dtype=upper.dtype, device=upper.device, memory_format=torch.channels_last)


def has_bfloat16_units() -> bool:
    """Whether oneDNN multiplies bfloat16 on this CPU without converting it to float32."""
    return _HAS_BFLOAT16 is not None and _HAS_BFLOAT16()


def version_of(tensor: Tensor) -> int:
    """A number that changes whenever a tensor is written to in place (but not through ``.data``).

    Fused optimisers do not count their steps: a hook of this module does it for them. Inference tensors keep no count:
    theirs is always 0. Without PyTorch's count it is a checksum of the values.
    """
    if tensor.is_inference():
        return 0
    if _VERSION is None:
        return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return tensor._version


def place_of(tensor: Tensor) -> int:
    """Where the values of a tensor are, which changes as ``.data`` is set; 0 where they have no place."""
    try:
        return tensor.data_ptr()
    except RuntimeError:  # of a transform, or a tensor without values
        return 0


def _count_fused_steps(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            if parameter.grad is not None and not parameter.is_inference():
                torch.autograd.graph.increment_version(parameter)


register_optimizer_step_post_hook(_count_fused_steps)


def is_batched(x: Tensor) -> bool:
    """Whether a tensor stands for each sample of a batch under `torch.func.vmap`."""
    if _IS_BATCHED is not None:
        return _IS_BATCHED(x)
    if x.is_meta or torch.compiler.is_compiling():
        return False
    try:
        x.flatten()[:0].sum().item()  # vmap refuses it
    except RuntimeError:
        return True
    return False


def require(good: Tensor, message: str) -> None:
    """Refuse values that are not as they should be, which a scalar tensor tells.

    On CUDA nobody waits for it: the device itself checks it in its turn, prints the message (of 255 letters at most),
    and computes no more in this process; the next call that waits for it raises a RuntimeError.

    Raises:
        ValueError: They are not.
    """
    if good.is_cuda and _REQUIRE is not None:
        _REQUIRE.msg(good, message)
    elif not good:
        raise ValueError(message)


class _Probe(torch.autograd.Function):
    """A function that no transform of `torch.func` can take, having no ``setup_context``."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


def is_func_transform_active() -> bool:
    """Whether a transform of `torch.func` is under way."""
    if _INTERPRETERS is not None:
        return _INTERPRETERS() is not None
    try:
        _Probe.apply(torch.empty(0))
    except RuntimeError:
        return True
    return False


def renew_weight(module: nn.Module) -> None:
    """Call the hooks of `torch.nn.utils` (pruning, weight_norm) that compute an interaction's weight before a call."""
    if not _HAS_HOOKS:
        nothing = module.weight.new_empty(0)
        module(nothing, nothing)  # a call with a state computes nothing beside the hooks
        return
    for hook in module._forward_pre_hooks.values():
        if _makes_weight(hook):
            hook(module, ())


def is_watched(module: nn.Module) -> bool:
    """Whether a module has hooks that should be called; always true where PyTorch's lists of hooks are missing."""
    if not _HAS_HOOKS:
        return True
    hooks = (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or not all(map(_makes_weight, module._forward_pre_hooks.values()))


def _makes_weight(hook: object) -> bool:
    """Whether a hook is one of pruning, `weight_norm` or the like, which set a weight anew before every call."""
    return any(kind.__module__.startswith("torch.nn.utils.") for kind in type(hook).__mro__)
