"""Checkpoints out: package a run, publish it to the Hugging Face Hub, verify what a card says.

    python -m timm_ebl.hub package runs/c-ep-dchn_small_cifar10-0
    python -m timm_ebl.hub publish hub_configs/dchn_small_cifar10.c_ep --repo-id OWNER/NAME
    python -m timm_ebl.hub verify dchn_small_cifar10.c_ep

Each of them shows its options by --help after its name.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..arguments import Parser
from ..errors import one_sentence
from ..training.console import begin
from ..training.finding import RECIPES
from ..training.threads import add_threads_option
from ..training.trained import TrainedModel
from ..training.user_code import add_import_option
from .package import package
from .publish import publish
from .verify import verify

__all__ = ["main"]


def build_parser() -> Parser:
    """The parser of this module's commands."""
    parser = Parser(prog="python -m timm_ebl.hub", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packaging = commands.add_parser("package", help="make a run part of the package")
    packaging.add_argument("runs", nargs="+", metavar="RUN", help="the run; then others that differ in the seed alone")
    packaging.add_argument("--tag", help="what follows the model's name (default: the rule, then the data if others)")
    packaging.add_argument("--note", help="a sentence for the card's limits")
    packaging.add_argument("--force", action="store_true", help="replace the checkpoint of that name")
    publishing = commands.add_parser("publish", help="send a run or a packaged checkpoint to the Hub")
    publishing.add_argument("source", help="folder of a run or in hub_configs, or name of a shipped model")
    publishing.add_argument("--repo-id", required=True, metavar="OWNER/NAME", help="the repository")
    publishing.add_argument("--private", action="store_true", help="make a new repository private")
    publishing.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")
    verifying = commands.add_parser("verify", help="measure a checkpoint again and compare it with its card")
    verifying.add_argument("source", help="name of a shipped model, folder, or OWNER/NAME on the Hub")
    for command in (packaging, publishing, verifying):
        command.add_argument("--data-root", metavar="FOLDER", help="copies of Hub data sets, instead of the Hub")
        command.add_argument("--dataset", metavar="FOLDER", help="the data set, if not where the recipe says")
        add_import_option(command)
        add_threads_option(command)
    return parser


@one_sentence()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command of this module."""
    options = begin(build_parser(), arguments)
    if options.command == "package":
        run, *others = map(TrainedModel.open, options.runs)
        name = package(run, options.tag, others, options.note, options.data_root, options.dataset, options.force)
        print(f"packaged {name}; {RECIPES / 'README.md'} has a row for each checkpoint: add one for it")
    elif options.command == "publish":
        access = {"private": options.private, "dry_run": options.dry_run}
        publish(options.source, options.repo_id, data_root=options.data_root, dataset=options.dataset, **access)
    else:
        measured = verify(options.source, options.data_root, options.dataset)
        found = f"{measured.error:.2f} % test error on {measured.images:,} images"
        print(f"{options.source}: {found}, which agrees with its files")
        if measured.equilibrium is not None:
            print(f"distance from equilibrium: {measured.equilibrium}")


if __name__ == "__main__":
    main()
