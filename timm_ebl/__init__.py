"""Energy-based learning of deep convolutional Hopfield networks, as a plugin for timm.

Importing the package registers the ``dchn_*``, ``hopfield_resnet13_*`` and ``pcn_*`` models with timm. Where torch is
not loaded yet and neither ``OMP_WAIT_POLICY`` nor ``GOMP_SPINCOUNT`` is set, the latter is set to 3000, a hundredth of
what GNU's OpenMP has by default: a relaxation is many small kernels, and on a machine with other work to do their
threads would spin for each other instead of running.
"""

import os
import sys

if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from .models.requirements import missing_of_timm

if lacking := missing_of_timm():
    raise ImportError(lacking)

from ._version import __version__
from .energy.functional import State
from .energy.interaction import Interaction
from .energy.perturbation import FREE, Clamped, Forced, Free, Nudged, Perturbation
from .models.dchn import DCHN
from .models.hopfield_resnet import HopfieldResNet
from .models.interactions import ConvInteraction, DenseInteraction
from .models.network import HopfieldNetwork
from .models.pcn import PCN
from .models.predictive import PredictiveCodingNetwork
from .relaxation.minimizer import EQUILIBRIUM, PAPER, Minimizer, Start
from .relaxation.model import EnergyModel
from .relaxation.order import list_orders, register_order
from .relaxation.record import Relaxation
from .rules.autograd import equilibrium
from .rules.backward import Backward
from .rules.catalogue import create_backward, list_backwards
from .rules.cost import Cost, list_costs, register_cost
from .rules.nudging import Nudging, random_signs
from .rules.rule import Rule, RuleOutput, create_rule, list_rules, register_rule

__all__ = [
    "DCHN",
    "EQUILIBRIUM",
    "FREE",
    "PAPER",
    "PCN",
    "Backward",
    "Clamped",
    "ConvInteraction",
    "Cost",
    "DenseInteraction",
    "EnergyModel",
    "Forced",
    "Free",
    "HopfieldNetwork",
    "HopfieldResNet",
    "Interaction",
    "Minimizer",
    "Nudged",
    "Nudging",
    "Perturbation",
    "PredictiveCodingNetwork",
    "Relaxation",
    "Rule",
    "RuleOutput",
    "Start",
    "State",
    "__version__",
    "create_backward",
    "create_rule",
    "equilibrium",
    "list_backwards",
    "list_costs",
    "list_orders",
    "list_rules",
    "random_signs",
    "register_cost",
    "register_order",
    "register_rule",
]
