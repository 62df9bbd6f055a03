"""A learning rule as a timm training task."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from timm.task import TrainingTask
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..rules.rule import require_energy

if TYPE_CHECKING:
    from ..energy.functional import State
    from ..rules.rule import Rule, RuleOutput

__all__ = ["RuleTask"]


class RuleTask(TrainingTask):
    """Trains an energy model by a rule: ``task(x, y)["loss"].backward()`` accumulates the rule's update.

    The rule runs inside the task's ``forward``, so whatever wraps the task (data parallelism, autocast, a gradient
    scaler) treats it as any other loss.

    Args:
        model: A `timm_ebl.EnergyModel`.
        rule: The rule.
        **kwargs: ``device``, ``dtype`` and ``verbose`` of `timm.task.TrainingTask`.

    Raises:
        TypeError: The model has no energy.
    """

    def __init__(self, model: nn.Module, rule: Rule, **kwargs) -> None:
        super().__init__(**kwargs)
        require_energy(model)
        self.trainable_module = model
        self.rule = rule
        self._distributed: list[DistributedDataParallel] = []

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs) -> RuleTask:
        """Average the updates over all processes: the rule's call, not the model's, is wrapped for data parallelism.

        Args:
            device_ids: This process's device, for a GPU.
            **ddp_kwargs: Further arguments of `torch.nn.parallel.DistributedDataParallel`.
        """
        # In a list, so that it is no submodule: the model's parameters are registered already.
        self._distributed = [DistributedDataParallel(_Step(self.trainable_module, self.rule), device_ids, **ddp_kwargs)]
        return self

    def no_sync(self) -> AbstractContextManager:
        return self._distributed[0].no_sync() if self._distributed else super().no_sync()

    def forward(
        self, input: Tensor, target: Tensor, start: State | None = None, signs: Tensor | None = None
    ) -> dict[str, Tensor | State]:
        """One step's loss.

        Args:
            input: Images ``(B, C, H, W)``.
            target: Class indices ``(B,)`` or desired outputs ``(B, M)``.
            start: State from which the free phase starts.
            signs: Those of the samples, for a rule that `draws`, ``(B,)``.

        Returns:
            ``loss``, the scalar to descend; ``output``, the free phase's ``(B, M)``; its ``energy`` and ``residual``,
            ``(B,)`` each; its ``state``; and ``last``, the state that the second phase left.
        """
        given = (input, target, start) if signs is None else (input, target, start, signs)
        if self._distributed:
            loss, output, free, last = self._distributed[0](*given)
        else:
            loss, output, free, last = self.rule(self.trainable_module, *given)
        metrics = {"energy": free.energy, "residual": free.residual}
        return {"loss": loss, "output": output, **metrics, "state": free.state, "last": last}


class _Step(nn.Module):
    """A rule's call as a module's, for `DistributedDataParallel` to wrap."""

    def __init__(self, model: nn.Module, rule: Rule) -> None:
        super().__init__()
        self.model, self.rule = model, rule

    def forward(self, *given: Tensor | State | None) -> RuleOutput:
        return self.rule(self.model, *given)
