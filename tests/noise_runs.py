"""Runs of a small model whose gradients are noise, for tests of what a checkpoint keeps."""

import torch
from accelerate import Accelerator
from torch import nn

from timm_ebl.training.build import build_optimizer
from timm_ebl.training.checkpoint import Checkpoints
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.progress import Progress
from timm_ebl.training.signals import StopSignals


class Run:
    """A model, its optimiser and its checkpoints."""

    def __init__(self, folder, width=6, keep=2, **settings):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(width, 5))
        self.model.interactions = list(self.model)
        config = TrainConfig(**settings)
        accelerator, self.progress = Accelerator(cpu=True), Progress()
        self.optimizer = accelerator.prepare(build_optimizer(config, self.model))
        settings = config.decisive() | {"processes": 1}
        parts = (self.model, self.optimizer, self.progress, StopSignals())
        self.checkpoints = Checkpoints(folder, accelerator, *parts, settings, keep)

    def step(self, count=7):
        for _ in range(count):
            self.progress.step += 1
            generator = torch.Generator().manual_seed(self.progress.step)
            for parameter in self.model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            self.optimizer.step()
