"""How much of a one-sided rule's contrast is the free state's own way to rest, and not the perturbation's doing.

    python -m timm_ebl.tools.drift --models dchn_tiny_cifar10 --free-sweeps 15 60 250

A free phase that breaks off early leaves a state that still moves. The perturbed phase starts there and makes that
movement too, and a rule that contrasts it with the free state takes the sum of both for the perturbation's effect. With
``g`` the contrast with the free state and ``g_c`` that with an unperturbed state relaxed as long as the perturbed one
(its companion), the drift is ``g - g_c``. Its share of the contrast is ``|g - g_c|^2 / (|g - g_c|^2 + |g_c|^2)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import Parser, positive_count
from ..errors import one_sentence
from ..relaxation.minimizer import PAPER, Minimizer
from ..rules.rule import create_rule, require_strength, rule_options
from ..training.console import begin
from .gradients import add_network_options, load_network, require_sweeps, rule_gradients, true_gradient

if TYPE_CHECKING:
    from ..models.network import HopfieldNetwork

__all__ = ["Drift", "drift", "main"]

RULES = ("p-ep", "n-ep", "p-cpl", "n-cpl", "cl")
"""The rules that contrast a perturbed state with a free one."""


class Drift(NamedTuple):
    """What the drift is to a contrast, over the weights of all interactions.

    Attributes:
        residual: Median residual of the free states.
        share: Part of the drift in the contrast, in squares of norms, from 0 to 1.
        cosine: Of the contrast with the true gradient at the network's equilibrium.
        cosine_without: The same without the drift.
    """

    residual: float
    share: float
    cosine: float
    cosine_without: float


def drift(
    model: HopfieldNetwork, x: Tensor, y: Tensor, true: Tensor, name: str, free: Minimizer, **options: object
) -> Drift:
    """Measure the drift in the contrast of a one-sided rule, pooling routes followed.

    Args:
        model: The network.
        x: Input ``(B, C, H, W)``.
        y: Labels ``(B,)``.
        true: The true gradient at the equilibrium to which the free phase leads, whatever its sweeps (`true_gradient`).
        name: The rule, one of `RULES`.
        free: The free phase.
        **options: Other options of the rule (`timm_ebl.create_rule`).
    """
    options |= {"free": free, "settle": False}
    if name != "cl":
        options["linear_response"] = False
    contrast, without = (
        torch.cat(rule_gradients(model, x, y, name, companion=companion, **options)) for companion in (False, True)
    )
    drifted, caused = ((part @ part).item() for part in (contrast - without, without))
    cosines = (F.cosine_similarity(part, true, dim=0).item() for part in (contrast, without))
    return Drift(model.relax(x, minimizer=free).residual.median().item(), drifted / (drifted + caused), *cosines)


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the drift of some networks from the command line."""
    parser = Parser(prog="python -m timm_ebl.tools.drift", description=__doc__)
    add_network_options(parser, ["dchn_tiny_cifar10"], 64)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=["p-ep"], help="rules (default: p-ep)")
    parser.add_argument("--free-sweeps", nargs="+", type=positive_count, default=[15, 60, 250], metavar="N")
    parser.add_argument("--nudged-sweeps", type=positive_count, default=15, metavar="N", help="default: 15")
    parser.add_argument("--beta", type=float, default=0.25, help="strength of the perturbation (default: 0.25)")
    options = begin(parser, arguments)
    try:
        strengths = {name: {"beta": options.beta} if "beta" in rule_options(name) else {} for name in options.rules}
        for name, strength in strengths.items():
            create_rule(name, **strength)
        require_strength(options.beta, torch.float32)
    except ValueError as error:
        parser.error(str(error))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [load_network(name, options, device) for name in options.models]
    for name, (model, _, _) in zip(options.models, networks, strict=True):
        require_sweeps(model, f"{name}: a drift")
    perturbed = Minimizer(sweeps=options.nudged_sweeps, omega=1.0)
    for model_name, (model, x, y) in zip(options.models, networks, strict=True):
        print(f"\n{model_name}, {len(x)} images; the paper's free phase, {options.nudged_sweeps} sweeps more perturbed")
        print(
            f"{'rule':<6} {'free sweeps':>11} {'residual':>9} {'drift':>7}  cosine with the true gradient, less drift"
        )
        true = torch.cat(true_gradient(model, x, y, PAPER))
        for name, strength in strengths.items():
            for sweeps in options.free_sweeps:
                found = drift(model, x, y, true, name, replace(PAPER, sweeps=sweeps), perturbed=perturbed, **strength)
                print(
                    f"{name:<6} {sweeps:>11} {found.residual:9.1e} {100 * found.share:5.1f} %  {found.cosine:.3f}, "
                    f"{found.cosine_without:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
