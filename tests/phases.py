"""The kinds of phases, as the package and the reference name them."""

import torch

from timm_ebl import FREE, Clamped, Nudged

TARGET = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 1, 2]]
PHASES = {
    "free": (FREE, {}),
    "nudged towards": (Nudged(TARGET, 0.3), {"beta": 0.3, "y": TARGET}),
    "nudged away": (Nudged(TARGET, -0.3), {"beta": -0.3, "y": TARGET}),
    "damped": (Nudged(TARGET, -0.3, damped=True), {"beta": -0.3, "y": TARGET, "damped": True}),
    "clamped": (Clamped(TARGET), {"clamp": TARGET}),
}


def cast(phase, dtype):
    match phase:
        case Nudged(target, beta, damped):
            return Nudged(target.to(dtype), beta, damped)
        case Clamped(target):
            return Clamped(target.to(dtype))
    return phase
