"""Whether the installed timm is one that the package can build on."""

from __future__ import annotations

import re
from importlib import import_module

import timm

__all__ = ["OLDEST_TIMM", "missing_of_timm"]

OLDEST_TIMM = "1.0.31"

_INTERNAL = {
    "timm.models._factory": ("load_model_config_from_hf", "load_model_config_from_path"),
    "timm.models._features": ("feature_take_indices",),
    "timm.models._hub": ("load_model_config_from_path",),
    "timm.models._input": ("update_model_input_size",),
    "timm.models._pretrained": ("PretrainedCfg",),
}
"""What the package uses beside timm's public names, and a later timm may move."""


def missing_of_timm() -> str | None:
    """What is wrong with the installed timm, in one sentence; ``None`` if nothing is."""
    found = [*map(int, re.findall(r"\d+", timm.__version__)[:3])]
    if found < [*map(int, OLDEST_TIMM.split("."))]:
        return f"timm_ebl needs timm {OLDEST_TIMM} or later, not {timm.__version__}: pip install -U timm."
    for module, names in _INTERNAL.items():
        try:
            lacking = [name for name in names if not hasattr(import_module(module), name)]
        except ImportError:
            lacking = names
        if lacking:
            return (
                f"timm {timm.__version__} has no {module}.{lacking[0]} any more, which timm_ebl needs: pip install "
                f"timm=={OLDEST_TIMM}, or a later timm_ebl."
            )
    return None
