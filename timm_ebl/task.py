"""A learning rule as a timm training task."""

from __future__ import annotations

from timm.task import TrainingTask
from torch import Tensor, nn

from .energy import State
from .rules import Rule

__all__ = ["RuleTask"]


class RuleTask(TrainingTask):
    """Trains an energy model by a rule: ``task(x, y)["loss"].backward()`` accumulates the rule's update.

    The rule runs inside the task's ``forward``, so whatever wraps the task (data parallelism, autocast, a gradient
    scaler) treats it as any other loss.

    Args:
        model: A `timm_ebl.network.EnergyModel`.
        rule: The rule.
        **kwargs: ``device``, ``dtype`` and ``verbose`` of `timm.task.TrainingTask`.
    """

    def __init__(self, model: nn.Module, rule: Rule, **kwargs) -> None:
        super().__init__(**kwargs)
        self.trainable_module = model
        self.rule = rule

    def forward(self, input: Tensor, target: Tensor, start: State | None = None) -> dict[str, Tensor | State]:
        """One step's loss.

        Args:
            input: Images ``(B, C, H, W)``.
            target: Class indices ``(B,)`` or desired outputs ``(B, M)``.
            start: State from which the free phase starts.

        Returns:
            ``loss``, the scalar to descend; ``output``, the free phase's ``(B, M)``; its ``energy`` and ``residual``,
            ``(B,)`` each; and its ``state``.
        """
        loss, output, free = self.rule(self.trainable_module, input, target, start)
        return {"loss": loss, "output": output, "energy": free.energy, "residual": free.residual, "state": free.state}
