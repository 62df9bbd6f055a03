"""The rule of a run, and its phases, as a configuration says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError
from ..rules.contrastive import ContrastiveRule
from ..rules.rule import Rule, create_rule, require_strength, rule_class, rule_options
from .presets import FREE_PHASE

if TYPE_CHECKING:
    from ..relaxation.model import EnergyModel
    from .config import TrainConfig

__all__ = ["build_rule", "free_phase"]


def free_phase(config: TrainConfig) -> dict[str, Any]:
    """The configured fields of the free phase's `Minimizer`, which a DCHN takes as arguments too."""
    return {argument: getattr(config, name) for name, (argument, *_) in FREE_PHASE.items()}


def build_rule(config: TrainConfig, model: EnergyModel) -> Rule:
    """The configured rule; its free phase, and what is left open, are the model's (`Rule.fitted`).

    `timm_ebl.training.build.build_model` gives a model the configured free phase, if it takes one.
    The baselines have their own order and over-relaxation in the second phase, the paper's.

    Raises:
        ConfigError: The rule cannot be built, beta does not go with it, rounding leaves nothing of beta, or the rule
            cannot perturb outputs of the model's classes.
    """
    options = {
        "free": replace(model.minimizer, compiled=config.compiled or model.minimizer.compiled),
        "beta": config.beta,
        "linear_response": config.linear_response,
        "settle": config.settle,
        "companion": config.companion,
        "damped": config.damped,
        "cost": config.cost,
    }
    second = {
        "sweeps": config.nudged_sweeps,
        "order": config.nudged_order,
        "omega": config.nudged_omega,
        "compiled": config.compiled,
    }
    allowed, field = rule_options(config.algo), rule_class(config.algo).second_field
    if named := next((name for name in config.rule_kwargs if name in (*options, field)), None):
        raise ConfigError(f"--rule-kwargs is for what has no option of its own, and {named} has one.")
    try:
        if field in allowed:
            options[field] = replace(create_rule(config.algo).fitted(model).second_phase, **_given(second))
        given = {name: value for name, value in _given(options).items() if name in allowed}
        rule = create_rule(config.algo, **given, **config.rule_kwargs).fitted(model)
        if isinstance(rule, ContrastiveRule):
            require_strength(rule.beta, torch.float32)
            classes = torch.eye(model.num_classes)
            rule.perturbation(torch.zeros_like(classes), classes, torch.full((len(classes), 1), rule.beta))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except Exception as error:  # what a rule of the user's raises has no common type
        raise ConfigError(f"Rule {config.algo!r} fails ({type(error).__name__}: {error}).") from error
    return rule


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
