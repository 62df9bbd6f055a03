"""Model card of a checkpoint, rendered from its recipe, its metrics and its summary."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import timm
from huggingface_hub import EvalResult, ModelCardData
from timm.models import is_model_in_modules

from ..data.catalogue import DATASETS, EMBEDDED, spec_of
from ..data.paper import CITATION, PAPER_EPOCHS, PAPER_WIDTHS, SPLIT_SIZES, paper_error
from ..models.factory import family_of
from ..models.network import HopfieldNetwork
from ..models.predictive import PredictiveCodingNetwork
from ..relaxation.minimizer import Minimizer
from ..rules.backprop import RecurrentBackprop, TruncatedBackprop
from ..rules.contrastive import ContrastiveRule
from ..training.equilibrium import Nearness
from ..training.progress import duration
from ..training.records import METRIC, precision_of
from ..training.rule import build_rule, free_phase
from .usage import render_usage

if TYPE_CHECKING:
    from ..relaxation.model import EnergyModel
    from ..rules.rule import Rule
    from ..training.config import TrainConfig

__all__ = ["render_card"]

_TAGS = ("image-classification", "timm", "timm_ebl", "energy-based-learning")

_FORWARD = "a forward pass"


def render_card(
    name: str, model: str, recipe: TrainConfig, summary: Mapping[str, Any], config: Mapping[str, Any]
) -> str:
    """The card's text: YAML metadata, then Markdown.

    Args:
        name: Name of the checkpoint.
        model: What ``timm.create_model`` loads it by: its name, or ``hf-hub:owner/name``.
        recipe: Resolved settings of the run.
        summary: Result of the run, with ``other_seeds`` and ``note`` if there are any.
        config: timm's ``config.json`` with its ``evaluation``.
    """
    network = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    rule = build_rule(recipe, network)
    if family_of(config["architecture"]):  # which may have been trained by another free phase than it answers by
        rule = replace(rule, free=Minimizer(**free_phase(recipe), compiled=recipe.compiled))
    sections = [
        _header(name, summary, config["evaluation"], network),
        _results(name, summary, config["evaluation"], network, rule),
        render_usage(model, network, recipe, config, summary["dataset"]),
        _training(recipe, rule, summary, network, config["pretrained_cfg"]),
        _limits(summary, config["evaluation"], network),
        _citation(config["pretrained_cfg"].get("paper_ids")),
    ]
    return "\n\n".join(sections) + "\n"


def _citation(paper: str | None) -> str:
    network = f" The network is that of {paper}." if paper else ""
    licence = f"Apache License 2.0; the images keep the licence of their data set.{network}"
    return f"## Licence and citation\n\n{licence}\n\n{CITATION}"


def _header(name: str, summary: Mapping[str, Any], evaluation: Mapping[str, Any], network: EnergyModel) -> str:
    spec = DATASETS.get(summary["dataset"])
    hub_id = spec.hub_id if spec else None
    error = evaluation["error"]
    where = {
        "task_type": "image-classification",
        "dataset_type": hub_id or summary["dataset"],
        "dataset_name": summary["dataset"],
        "dataset_config": evaluation["config"] or (spec.config if spec else None),
        "dataset_split": evaluation.get("split") or evaluation.get("test_split") or "test",
        "dataset_revision": evaluation["revision"],
    }
    data = ModelCardData(
        model_name=name,
        library_name="timm",
        pipeline_tag="image-classification",
        license="apache-2.0",
        tags=[*_TAGS, *(["hopfield-network"] if isinstance(network, HopfieldNetwork) else []), summary["algo"]],
        datasets=[hub_id] if hub_id else None,
        metrics=["accuracy"],
        eval_results=[
            EvalResult(metric_type=METRIC, metric_name="Test error (%)", metric_value=round(error, 4), **where),
            EvalResult(metric_type="accuracy", metric_name="Accuracy (%)", metric_value=round(100 - error, 4), **where),
        ],
    )
    return f"---\n{data.to_yaml()}\n---"


def _results(
    name: str, summary: Mapping[str, Any], evaluation: Mapping[str, Any], network: EnergyModel, rule: Rule
) -> str:
    error, images = evaluation["error"], evaluation["images"]
    found = f"**{error:.2f} %** (standard error {math.sqrt(error * (100 - error) / images):.2f} over {images:,} images)"
    seeds = f"{summary['seed']}, the only one run"
    if others := summary.get("other_seeds"):
        errors = [error, *others.values()]
        found += f"; mean of {len(errors)} seeds {statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f} %"
        seeds = f"{summary['seed']} (these weights), {', '.join(map(str, others))}"
    count = summary.get("training_images")
    trained = f"{summary['epochs']} epochs" + (f" of {count:,} images" if count else "")
    widths = "-".join(str(info["num_chs"]) for info in getattr(network, "feature_info", []))
    other = replace(rule.free, compiled=False) != network.minimizer
    held_out, chosen = summary["held_out_error"], f"epoch {summary['best_epoch']} was best on the held-out part"
    rows = {
        "test error": found,
        "held-out error": "nothing was held out"
        if held_out is None
        else f"{held_out:.2f} %" + " (by the free phase of the training)" * other,
        "seeds": seeds,
        "trained for": f"{trained}; " + ("the last one's weights" if held_out is None else chosen),
        "model": (f"widths {widths}, " if widths else "")
        + f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters",
    }
    if network.rests:
        rows["distance from equilibrium"] = f"none: {_FORWARD} ends there"
    elif near := evaluation.get("equilibrium"):
        rows["distance from equilibrium"] = str(Nearness(**near))
    paper = paper_error(summary["algo"], summary["dataset"]) if _is_dchn(network) else None
    if paper is not None:
        rows["test error in the paper"] = f"{paper} % (widths {PAPER_WIDTHS}, {PAPER_EPOCHS} epochs)"
    predicts = "for every image it relaxes to a minimum of its energy"
    if isinstance(network, HopfieldNetwork):
        kind = "A deep convolutional Hopfield network" if _is_dchn(network) else "A Hopfield network"
    elif isinstance(network, PredictiveCodingNetwork):
        kind, predicts = "A predictive coding network", "it predicts by one forward pass"
    else:
        kind = "An energy model"
    kind += " of" if family_of(network.pretrained_cfg["architecture"]) else " trained by"
    return (
        f"# {name}\n\n{kind} [timm_ebl](https://github.com/timm-ebl/timm_ebl): {predicts}. Trained on "
        f"{summary['dataset']} by {_learned(rule)}, `{summary['algo']}`.\n\n{_table(rows)}\n\n"
        "![Course of the training](curves.png)"
    )


def _learned(rule: Rule) -> str:
    """What kind of rule it is."""
    if isinstance(rule, (TruncatedBackprop, RecurrentBackprop)):
        return "backpropagation"
    return "an energy-based rule" if isinstance(rule, ContrastiveRule) else "a rule of its own"


def _training(
    recipe: TrainConfig, rule: Rule, summary: Mapping[str, Any], network: EnergyModel, normalisation: Mapping[str, Any]
) -> str:
    inference = network.minimizer
    held = ", pooling routes held" if getattr(rule, "linear_response", False) else ""
    precision = precision_of(summary, recipe)
    rows = _origin(recipe, summary) | {
        "rule": f"`{recipe.algo}`"
        + (f", beta {rule.beta}" if hasattr(rule, "beta") else "")
        + (f", cost {recipe.cost}" if recipe.cost else ""),
        "free phase": _FORWARD
        if network.rests
        else _describe(rule.free or inference) + (", from where the last batch ended" if recipe.warm_start else ""),
        "second phase": _describe(rule.second_phase) + held if rule.second_phase else "none",
        "optimiser": f"{recipe.opt}, learning rate {', '.join(map(str, recipe.lr))}, cosine to {recipe.min_lr}, weight "
        f"decay {recipe.weight_decay}" + _start_and_bound(recipe),
        "batch": f"{recipe.batch_size} images on each process"
        + f", {recipe.grad_accum_steps} batches a step" * (recipe.grad_accum_steps > 1),
        "augmentation": _augmentation(recipe, summary["dataset"]),
        "normalisation": _normalisation(summary["dataset"] if _is_dchn(network) else None, normalisation),
        "precision": "float32" if precision == "no" else precision,
        "cost": duration(summary["seconds"]) + (f" on {summary['device']}" if summary.get("device") else ""),
        "versions": ", ".join(f"{package} {number}" for package, number in summary["versions"].items()),
        "inference": _FORWARD if network.rests else f"{_describe(inference)}, start {inference.start}",
    }
    return (
        f"## Training\n\n{_table(rows)}\n\n`args.yaml` holds every setting: `accelerate launch train_ebl.py --config "
        f"args.yaml` runs it again. `metrics.jsonl` has a line for each epoch. {_selection(recipe.holdout)} "
        "The test split was measured after the last epoch, and selected nothing."
    )


def _origin(recipe: TrainConfig, summary: Mapping[str, Any]) -> dict[str, str]:
    kept = f"the lowest {recipe.freeze} interactions keep their weights" if recipe.freeze else ""
    digest = summary.get("pretrained_sha256")
    source = recipe.pretrained and f"`{recipe.pretrained}`" + (f" (SHA-256 {digest[:16]}..)" if digest else "")
    text = "; ".join(filter(None, (source, kept)))
    return {"started from": text} if text else {}


def _start_and_bound(recipe: TrainConfig) -> str:
    rise = f", after a rise from 0 over epochs 1 to {recipe.warmup_epochs}" if recipe.warmup_epochs else ""
    bound = f", gradients of norm {recipe.clip_grad} at most" if recipe.clip_grad else ""
    decay = f"; moving average of the weights, decay {recipe.model_ema_decay}" + " at most" * recipe.model_ema_warmup
    return rise + bound + decay * recipe.model_ema


def _selection(holdout: float) -> str:
    if not holdout:
        return "The whole training split was trained on, and the last epoch's weights were kept."
    return f"{holdout:.0%} of the training split was held out, class by class, and selected the epoch."


def _augmentation(recipe: TrainConfig, dataset: str) -> str:
    spec, (number, magnitude) = spec_of(dataset), recipe.randaugment
    ways = [f"shifts of up to {spec.padding} pixels", *["mirror images"] * spec.flip]
    ways += [f"{number} operations of RandAugment with magnitude {magnitude}"] * bool(number)
    ways += [f"a square of {recipe.cutout} pixels set to the mean"] * bool(recipe.cutout)
    return ", ".join(ways) if recipe.aug else "none"


def _normalisation(dataset: str | None, normalisation: Mapping[str, Any]) -> str:
    def listed(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.4g}" for value in values)

    text = f"mean {listed(normalisation['mean'])}; deviation {listed(normalisation['std'])}"
    spec = DATASETS.get(dataset)
    if spec is not None and spec.paper_std and spec.paper_std != tuple(normalisation["std"]):
        text += f" (the paper's: {listed(spec.paper_std)})"
    return text


def _limits(summary: Mapping[str, Any], evaluation: Mapping[str, Any], network: EnergyModel) -> str:
    dataset, epochs = summary["dataset"], summary["epochs"]
    points = [
        f"It knows the classes of {dataset} and images prepared like them. Its outputs are no probabilities.",
        "Other hardware, libraries or numbers of threads round differently: single predictions may flip.",
    ]
    published = SPLIT_SIZES.get(dataset, (None, evaluation["images"]))[1]
    if evaluation["images"] != published:
        points.append(
            f"The copy of the test split has {evaluation['images']:,} images; the published one has "
            f"{published:,}, on which the error may differ."
        )
    if dataset == EMBEDDED:
        points.append("Its data are the sample that comes with timm_ebl, a part of Fashion-MNIST: a demonstration.")
    paper = paper_error(summary["algo"], dataset) if _is_dchn(network) else None
    if paper is not None and epochs < PAPER_EPOCHS:
        points.append(
            f"It had {epochs} epochs. The paper's {paper} % takes {PAPER_EPOCHS} epochs at widths {PAPER_WIDTHS}, and "
            "that a GPU; the recipes are in the repository's hub_configs."
        )
    if summary.get("note"):
        points.append(summary["note"])
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _is_dchn(network: EnergyModel) -> bool:
    return is_model_in_modules(network.pretrained_cfg["architecture"], ["dchn"])


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {title} | {text} |" for title, text in rows.items())])


def _describe(minimizer: Minimizer) -> str:
    return f"{minimizer.sweeps} sweeps, {minimizer.order}, omega {minimizer.omegas}"
