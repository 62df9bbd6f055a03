"""Trains in each of the processes that launched it, for `test_processes`: ``one_of_two.py IMAGES OUT``."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from timm_ebl import list_rules
from timm_ebl.data.loader import build_eval_loader, build_train_loader
from timm_ebl.data.transforms import BatchTransform
from timm_ebl.training.average import WeightAverage
from timm_ebl.training.build import build_model, build_optimizer, build_transform
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.engine import evaluate, train_epoch
from timm_ebl.training.progress import Progress
from timm_ebl.training.rule import build_rule
from timm_ebl.training.splits import load_splits
from timm_ebl.training.task import RuleTask

RULES = tuple(list_rules())
BATCH = 12


class ExactTransform(BatchTransform):
    """Images in 64 bits: in 32, rounding would turn a pooling route now and then, and what it parts stays apart."""

    def eval(self, images):
        return super().eval(images).double()


def trained(accelerator, config):
    """Weights before and after two epochs of batches of 12, shared out to the processes, and metrics."""
    set_seed(config.seed)
    data = load_splits(config)
    model = build_model(config, data.train).double()
    transform = ExactTransform(**asdict(build_transform(config, data.train)))
    task = RuleTask(model, build_rule(config, model), device=accelerator.device, verbose=False)
    task, optimizer = accelerator.prepare(task, build_optimizer(config, model))
    loader = build_train_loader(data.train, config.batch_size, config.seed, accelerator)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    progress, metrics, average = Progress(), [], WeightAverage(model, 0.9)
    for epoch in (1, 2):
        progress.epoch = epoch
        progress.restart_epoch()
        parts = accelerator, task, loader, optimizer, transform, progress
        metrics.append(train_epoch(*parts, warm_start=True, average=average))
    test = evaluate(accelerator, model, build_eval_loader(data.test, 4, accelerator), transform)
    return {"before": before, "weights": model.state_dict(), "average": average.state_dict(), "metrics": metrics,
            "test": test}  # fmt: skip


def results(accelerator, images):
    """What every rule comes to, and the number of processes."""
    config = TrainConfig(
        dataset=str(images),
        batch_size=BATCH // accelerator.num_processes,
        model_kwargs={"widths": [4, 4, 4, 4], "gains": 0.8},
        randaugment=(2, 9),
        opt="momentum",
        lr=(0.02,),
    )
    found = {rule: trained(accelerator, replace(config, algo=rule)) for rule in RULES}
    return {"processes": accelerator.num_processes, **found}


def main():
    images, out = sys.argv[1:]
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    found = results(accelerator, images)
    if accelerator.is_main_process:
        torch.save(found, Path(out))
    accelerator.end_training()


if __name__ == "__main__":
    main()
