"""What a relaxation cannot start from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["require_finite", "require_state", "require_versions"]


def require_state(state: object, shapes: Sequence[torch.Size], device: torch.device) -> None:
    """Refuse what is no state of layers of these shapes on a device.

    Raises:
        TypeError: It is no tuple of tensors of real numbers.
        ValueError: The shapes are others, or the device is.
    """
    if not isinstance(state, (tuple, list)) or not all(isinstance(layer, Tensor) for layer in state):
        raise TypeError(f"A start is a tuple of the layers, a relaxation or a name, not {type(state).__name__}.")
    if not all(layer.is_floating_point() for layer in state):
        raise TypeError(f"The layers of a start are real numbers, not {[str(layer.dtype) for layer in state]}.")
    found, needed = ([tuple(shape) for shape in each] for each in ((layer.shape for layer in state), shapes))
    if found != needed:
        raise ValueError(f"The start has layers of shapes {found}; this input needs {needed}.")
    elsewhere = next((layer.device for layer in state if layer.device != device), None)
    if elsewhere is not None:
        raise ValueError(f"The start has a layer on {elsewhere}, and the input is on {device}: move one of them.")


def require_finite(x: Tensor, start: Sequence[Tensor]) -> None:
    """Refuse NaN and infinite values.

    Raises:
        ValueError: There are some.
    """
    finite = [tensor.isfinite().all() for tensor in (x, *start)]
    if not (torch.stack(finite).all() if start else finite[0]):
        if finite[0]:
            raise ValueError("The start holds NaN or infinite values: start from another state, or from none.")
        raise ValueError("The input holds NaN or infinite values: check the images and their normalisation.")


def require_versions(tensors: Iterable[Tensor]) -> None:
    """Refuse tensors of inference mode: nobody knows whether they were written to.

    Raises:
        ValueError: There are some.
    """
    if any(tensor.is_inference() for tensor in tensors):
        raise ValueError(
            "Tensors of torch.inference_mode do not tell whether they were changed since a relaxation, so that no rule "
            "can go on from it: use torch.no_grad instead, for the network and the images too."
        )
