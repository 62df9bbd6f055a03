"""A model and a rule that live outside the package: ``train_ebl.py --import outside`` trains the one by the other."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from dense import DenseHopfield
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from timm_ebl import FREE, Clamped, Minimizer, Rule, RuleOutput, register_rule
from timm_ebl.rules.rule import as_target

default_cfgs = generate_default_cfgs({"outside_dense": {"num_classes": 10, "input_size": (3, 32, 32)}})


class ImageHopfield(DenseHopfield):
    """The dense network for images: an energy model with nothing of the package but the interface."""

    def __init__(self, num_classes=10, in_chans=3, hidden=16):
        super().__init__(inputs=in_chans * 32 * 32, hidden=hidden, outputs=num_classes)
        self.num_classes = num_classes
        with torch.no_grad():
            self.V *= 0.2
        self.float()

    def energy(self, x, state):
        return super().energy(x.flatten(1), state)

    def sweep(self, x, state, minimizer=None, perturbation=FREE):
        return super().sweep(x.flatten(1), state, minimizer, perturbation)


@register_model
def outside_dense(pretrained=False, **kwargs):
    return build_model_with_cfg(ImageHopfield, "outside_dense", pretrained, **kwargs)


@dataclass(frozen=True)
class HalfClamping(Rule):
    """Contrast of the free state and of one whose output is clamped halfway (or another share) to the target."""

    perturbed: Minimizer = Minimizer(sweeps=3)  # noqa: RUF009 (frozen)
    share: float = 0.5

    second_field: ClassVar[str | None] = "perturbed"

    def __call__(self, model, x, y, start=None):
        free = model.relax(x, start, minimizer=self.free)
        target = as_target(y, free.output)
        clamped = model.relax(x, free, Clamped(free.state[-1].lerp(target, self.share)), self.perturbed)
        loss = (model.energy(x, clamped) - model.energy(x, free)).mean()
        return RuleOutput(loss, free.output, free, clamped.state)


register_rule("half-clamping", HalfClamping)
