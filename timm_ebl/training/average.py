"""An average of a model's weights over the steps of a run."""

from __future__ import annotations

from timm.utils import ModelEmaV3
from torch import nn

__all__ = ["WeightAverage"]


class WeightAverage(ModelEmaV3):
    """Timm's `ModelEmaV3` with its own count of the steps: ``a <- d a + (1 - d) w`` after every step.

    The first step's weights are taken as they are. ``module`` is a copy of the model with the average, and the
    `state_dict` is all that it takes to go on.

    Args:
        model: The model.
        decay: ``d``, at least 0 and below 1.
        warmup: Let ``d`` of step ``t`` be at most ``1 - t^(-2/3)``, so that a short run forgets its start, too.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True) -> None:
        super().__init__(model, decay, use_warmup=warmup)
        self.steps = 0

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        super().update(model, self.steps)

    def get_extra_state(self) -> int:
        """What the `state_dict` has beside the tensors: the number of steps."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        """Go on after so many steps."""
        self.steps = state
