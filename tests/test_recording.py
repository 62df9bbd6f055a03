"""Recordings of steps and answers, by a twin of a CUDA graph: operators that are recorded once and replayed alone.

The twin holds what PyTorch's tracer saw of one call, parameters by reference. So a replay makes no decision again, and
reading a value while it is recorded is an error, as on a device.
"""

import gc
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

from timm_ebl import DCHN, Minimizer, create_rule, list_rules, random_signs
from timm_ebl.kernels import recording
from timm_ebl.models.hopfield_resnet import HopfieldResNet
from timm_ebl.models.pcn import PCN
from timm_ebl.relaxation import descent

CONTRASTIVE = [name for name in list_rules() if name not in ("tbp", "rbp")]
SMALL = {"num_classes": 3, "in_chans": 2, "img_size": 16}
