"""Train a deep convolutional Hopfield network, or any other energy model, by an energy-based learning rule.

    accelerate launch train_ebl.py --algo n-ep
    python train_ebl.py --algo c-ep --dataset cifar10 --model dchn_small_cifar10 --epochs 30
    python train_ebl.py --config hub_configs/table2_cifar10.yaml --mixed-precision bf16
    python train_ebl.py --config RUN/args.yaml --output-dir RUN --resume
    python train_ebl.py --import my_module --algo my-rule --model my_model

With one process the launcher is not needed: without it, nothing but the run speaks, and its exit status is the run's.
Without --dataset it trains on a sample of Fashion-MNIST that comes with the package: 8 epochs in about a minute
on two CPU cores. Settings come from the defaults, then --config, then the command line.
"""

import os
import sys
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__" and not {"-h", "--help"}.isdisjoint(sys.argv):  # at once: what follows takes seconds to load
    options = Path(__file__).parent / "timm_ebl" / "training" / "options.txt"
    with suppress(BrokenPipeError):  # without a buffer, nothing is left for Python's end
        os.write(1, f"{__doc__}\n{options.read_text(encoding='utf-8')}\n".encode())
    sys.exit()

import timm_ebl  # noqa: F401 (before torch is loaded: how its threads wait)

# isort: split
from accelerate import Accelerator
from accelerate.utils import set_seed

from timm_ebl.data.loader import build_eval_loader, build_train_loader
from timm_ebl.errors import DataWarning, Diverged, one_sentence
from timm_ebl.hub.publish import check_access, publish
from timm_ebl.rules.cost import SQUARED_ERROR
from timm_ebl.tools.plots import plot_curves
from timm_ebl.training.average import WeightAverage
from timm_ebl.training.build import build_model, build_optimizer, build_transform, check_config
from timm_ebl.training.checkpoint import Checkpoints, checkpoint_bytes
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.console import bars_in_terminals_alone, survive_output
from timm_ebl.training.engine import evaluate, train_epoch
from timm_ebl.training.health import Watch
from timm_ebl.training.launch import on_main, start_accelerator
from timm_ebl.training.memory import keep_freed_memory
from timm_ebl.training.origin import settle_config
from timm_ebl.training.progress import Progress
from timm_ebl.training.report import Report
from timm_ebl.training.rule import build_rule
from timm_ebl.training.run_folder import RunFolder, device_name, versions
from timm_ebl.training.schedule import Schedule
from timm_ebl.training.signals import StopSignals, stopping_at_once
from timm_ebl.training.splits import load_splits
from timm_ebl.training.task import RuleTask
from timm_ebl.training.threads import set_threads
from timm_ebl.training.tracking import check_trackers, start_trackers


def train(config: TrainConfig, accelerator: Accelerator) -> None:
    """Train, select the best epoch on the held-out part, measure it once on the test split, and write the results."""
    check_trackers(config.log_with)
    config, origin = settle_config(config)
    check_config(config)
    set_seed(config.seed)
    if config.threads or accelerator.device.type == "cpu":
        set_threads(config.threads, int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))
    keep_freed_memory()

    if config.push_to_hub and accelerator.is_main_process:
        check_access(config.push_to_hub, config.model)
    progress = Progress()
    report = Report(accelerator, progress, config.epochs)
    if config.output_dir:  # before work is spent; by default its name says which model the data have chosen
        on_main(accelerator, lambda: RunFolder.create(config.output_dir, "", config.resume))
    with report.passing_on(DataWarning):
        data = load_splits(config)
    model = build_model(config, data.train, origin)
    rule = build_rule(config, model)
    cost = getattr(rule, "cost", SQUARED_ERROR)
    transform = build_transform(config, data.train)
    optimizer = build_optimizer(config, model)
    schedule = Schedule(optimizer, config.epochs, config.min_lr, config.warmup_epochs)
    name = model.pretrained_cfg["architecture"]
    default = f"{config.algo}-{name}-{config.seed}"
    folder = on_main(accelerator, lambda: RunFolder.create(config.output_dir, default, config.resume))

    train_loader = build_train_loader(data.train, config.batch_size, config.seed, accelerator)
    held_out_loader = data.held_out and build_eval_loader(data.held_out, config.eval_batch_size, accelerator)
    test_loader = build_eval_loader(data.test, config.eval_batch_size, accelerator)
    task = RuleTask(model, rule, device=accelerator.device, verbose=False)
    task, optimizer = accelerator.prepare(task, optimizer)
    average = WeightAverage(model, config.model_ema_decay, config.model_ema_warmup) if config.model_ema else None
    kept = model if average is None else average.module

    report.begin(config, origin, data, model, rule, folder.path, len(train_loader))
    watch = Watch(model, progress, config.watch_every, len(train_loader), report.warn)
    facts = {"processes": accelerator.num_processes, "data": data.checksum(), "model": name}
    facts["pretrained_sha256"] = origin and origin.sha256
    summary = {
        "algo": config.algo,
        "model": name,
        "dataset": data.train.name,
        "training_images": len(data.train),
        "data": facts["data"],
        "pretrained_sha256": facts["pretrained_sha256"],
        "epochs": config.epochs,
        "seed": config.seed,
        "device": device_name(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
        "versions": versions(),
    }
    lock = folder.locked() if accelerator.is_main_process else nullcontext()
    with lock, StopSignals() as signals:
        checkpoints = Checkpoints(
            folder.checkpoints,
            accelerator,
            model,
            optimizer,
            progress,
            signals,
            settings=config.decisive() | facts,
            keep=config.keep_checkpoints,
            minutes=config.checkpoint_minutes,
            average=average,
        )
        if config.resume and checkpoints.resume(config.force):
            report.say(f"going on after batch {progress.step} of epoch {progress.epoch}")
        if accelerator.is_main_process:
            lacking = max(1, config.keep_checkpoints + 1 - len(checkpoints.known))
            folder.require_space(checkpoint_bytes(model) * lacking)
            if progress.epoch <= config.epochs:
                folder.reopen()
            folder.write_settings(replace(config, resume=False, force=False).to_dict())
            folder.write_results(progress, model, transform, data.train, better=True)

        def between() -> None:
            report.batch()
            schedule.follow(progress, len(train_loader))
            checkpoints.between_batches()

        start_trackers(accelerator, config.log_with, folder.path, config.to_dict())

        try:
            while progress.epoch <= config.epochs:
                schedule.follow(progress, len(train_loader))
                trained = train_epoch(
                    accelerator,
                    task,
                    train_loader,
                    optimizer,
                    transform,
                    progress,
                    seed=config.seed,
                    warm_start=config.warm_start,
                    skip_bad_batches=config.skip_bad_batches,
                    clip_grad=config.clip_grad,
                    cost=cost,
                    average=average,
                    watch=watch,
                    between=between,
                    title=f"epoch {progress.epoch}/{config.epochs}",
                )
                held_out, unaveraged = {"error": None, "cost": None}, {}
                if held_out_loader:
                    with_held_out = held_out_loader, transform, checkpoints.between_batches, cost
                    held_out = evaluate(accelerator, kept, *with_held_out)
                    if average:
                        unaveraged["held_out_error_unaveraged"] = evaluate(accelerator, model, *with_held_out)["error"]
                metrics = {
                    "lr": optimizer.param_groups[0]["lr"],
                    "train_error": trained["error"],
                    "train_cost": trained["cost"],
                    "held_out_error": held_out["error"],
                    "held_out_cost": held_out["cost"],
                    **unaveraged,
                    "energy": trained["energy"],
                    "residual": trained["residual"],
                }
                better = progress.finish_epoch(metrics, kept.state_dict())
                checkpoints.save()
                if accelerator.is_main_process:
                    folder.write_results(progress, model, transform, data.train, better)
                known = {name: value for name, value in metrics.items() if value is not None}
                accelerator.log(known, step=progress.epoch - 1)
                report.epoch(progress.epochs[-1])
        except Diverged as error:
            if accelerator.is_main_process:
                reason = {"status": "diverged", "reason": str(error), "warnings": progress.warnings}
                folder.write_summary(summary | reason | {"seconds": progress.elapsed()})
            raise Diverged(f"{error}; what was saved before is kept") from error

        best = deepcopy(model)
        best.load_state_dict(progress.weights)
        test = evaluate(accelerator, best, test_loader, transform, checkpoints.between_batches)
        summary |= {
            "status": "completed",
            "best_epoch": progress.best["epoch"],
            "held_out_error": progress.best["held_out_error"],
            "test_error": test["error"],
            "test_images": len(data.test),
            "skipped_batches": progress.skipped,
            "warnings": progress.warnings,
            "seconds": progress.elapsed(),
        }
        result = {"test_error": test["error"], "best_epoch": progress.best["epoch"]}
        accelerator.log(result, step=progress.epoch - 1)  # Weights & Biases takes no step before the last
        if accelerator.is_main_process:
            folder.write_predictions(test["predicted"], data.test.labels)
            plot_curves(folder.path / "curves.png", progress.epochs, summary)
            folder.write_summary(summary)  # the last of the results: a run that has one is complete
            report.end(summary, folder.path)
            if config.push_to_hub:
                with stopping_at_once():
                    publish(folder.path, config.push_to_hub, test=data.test)
    accelerator.end_training()


@one_sentence()
@stopping_at_once()
def main() -> None:
    """Train from the command line; the exit status is 1 for an error, 3 for a divergence, 128 + N for a signal N."""
    bars_in_terminals_alone()
    config = parse_config()
    accelerator = start_accelerator(config)
    launched = {
        "mixed_precision": accelerator.mixed_precision,
        "grad_accum_steps": accelerator.gradient_accumulation_steps,
    }
    train(replace(config, **launched), accelerator)


if __name__ == "__main__":
    survive_output()
    main()
