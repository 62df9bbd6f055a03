"""Train a deep convolutional Hopfield network by an energy-based learning rule.

    accelerate launch train_ebl.py --algo n-ep
    accelerate launch train_ebl.py --algo c-ep --dataset cifar10 --model dchn_small_cifar10 --epochs 30
    accelerate launch --mixed_precision bf16 train_ebl.py --config hub_configs/table2_cifar10.yaml

Without --dataset it trains on a sample of Fashion-MNIST that comes with the package: 8 epochs in about a minute
on two CPU cores. Settings come from the defaults, then --config, then the command line.
"""

import sys
import time

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.lr_scheduler import CosineAnnealingLR

from timm_ebl.config import ConfigError, TrainConfig, parse_config
from timm_ebl.data import DataError
from timm_ebl.hub import HubError, check_access, publish
from timm_ebl.plots import plot_curves
from timm_ebl.release import ReleaseError
from timm_ebl.run import RunFolder, device_name, versions
from timm_ebl.task import RuleTask
from timm_ebl.training import (
    build_loader,
    build_model,
    build_optimizer,
    build_rule,
    build_transform,
    evaluate,
    load_splits,
    set_threads,
    train_epoch,
)


def train(config: TrainConfig, accelerator: Accelerator) -> None:
    """Train, select the best epoch on the held-out part, measure it once on the test split, and write the results."""
    begin = time.monotonic()
    set_seed(config.seed)
    set_threads(accelerator, config.threads)

    if config.push_to_hub and accelerator.is_main_process:
        check_access(config.push_to_hub, config.model)
    data = load_splits(config)
    rule = build_rule(config)
    model = build_model(config, data.train)
    transform = build_transform(data.train)
    optimizer = build_optimizer(config, model)
    name = model.pretrained_cfg["architecture"]

    source = data.train.name + (" (embedded; choose another with --dataset)" if config.dataset is None else "")
    sizes = ", ".join(
        f"{len(part):,} {title}" for part, title in zip(data, ("to train", "held out", "to test"), strict=True)
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    accelerator.print(f"data:  {source}: {sizes}, {len(data.train.classes)} classes")
    accelerator.print(f"model: {name}, {parameters:,} parameters")
    accelerator.print(f"rule:  {config.algo}: {rule}")
    if accelerator.is_main_process:
        folder = RunFolder.create(config.output_dir, f"{config.algo}-{name}-{config.seed}")
        folder.write_settings(config.to_dict())
        print(f"to:    {folder.path}")

    scheduler = CosineAnnealingLR(optimizer, config.epochs, config.min_lr)
    task, optimizer, train_loader, held_out_loader, test_loader = accelerator.prepare(
        RuleTask(model, rule, device=accelerator.device, verbose=False),
        optimizer,
        build_loader(data.train, config.batch_size, config.seed),
        build_loader(data.held_out, config.eval_batch_size),
        build_loader(data.test, config.eval_batch_size),
    )
    augmentation = torch.Generator(accelerator.device).manual_seed(config.seed + accelerator.process_index)

    epochs, best, state = [], None, None
    for epoch in range(1, config.epochs + 1):
        started = time.monotonic()
        trained, state = train_epoch(
            accelerator,
            task,
            train_loader,
            optimizer,
            transform,
            augmentation,
            warm_start=config.warm_start,
            start=state,
            title=f"epoch {epoch}/{config.epochs}",
        )
        held_out = evaluate(accelerator, model, held_out_loader, transform)
        epochs.append(
            {
                "epoch": epoch,
                "lr": optimizer.param_groups[0]["lr"],
                "train_error": trained["error"],
                "train_cost": trained["cost"],
                "held_out_error": held_out["error"],
                "held_out_cost": held_out["cost"],
                "energy": trained["energy"],
                "residual": trained["residual"],
                "seconds": time.monotonic() - started,
            }
        )
        accelerator.print(
            "epoch {epoch:3d}  lr {lr:.1e}  training error {train_error:5.2f} %  held-out error {held_out_error:5.2f} %"
            "  energy {energy:8.2f}  residual {residual:.1e}  {seconds:.0f} s".format(**epochs[-1])
        )
        if best is None or held_out["error"] < best["held_out_error"]:
            best = epochs[-1]
            weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
            if accelerator.is_main_process:
                folder.write_model(model, transform)
        if accelerator.is_main_process:
            folder.write_metrics(epochs)
        scheduler.step()

    model.load_state_dict(weights)
    test = evaluate(accelerator, model, test_loader, transform)
    summary = {
        "algo": config.algo,
        "model": name,
        "dataset": data.train.name,
        "epochs": config.epochs,
        "best_epoch": best["epoch"],
        "seed": config.seed,
        "held_out_error": best["held_out_error"],
        "test_error": test["error"],
        "test_images": len(data.test),
        "seconds": time.monotonic() - begin,
        "device": device_name(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
        "versions": versions(),
    }
    if accelerator.is_main_process:
        folder.write_summary(summary)
        plot_curves(folder.path / "curves.png", epochs, summary)
        print(
            f"test error {test['error']:.2f} % after epoch {best['epoch']}, the best on the held-out part, "
            f"in {summary['seconds']:.0f} s; results in {folder.path}"
        )
        if config.push_to_hub:
            publish(folder.path, config.push_to_hub, test=data.test)


if __name__ == "__main__":
    config = parse_config(description=__doc__)
    try:
        train(config, Accelerator(mixed_precision=config.mixed_precision))
    except (ReleaseError, ConfigError, DataError, HubError) as error:
        sys.exit(f"error: {error}")
