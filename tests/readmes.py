"""The guides of the repository, and what stands in their blocks of code."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FOLDERS = sorted({path.parent for path in (ROOT / "timm_ebl").glob("*/*.py")})
RESULTS = sorted(path.parent for path in ROOT.glob("hub_configs/*/table.json"))
GUIDES = [
    README,
    *(folder / "README.md" for folder in FOLDERS),
    *(ROOT / name for name in ("timm_ebl/embedded/README.md", "hub_configs/README.md")),
    *(ROOT / name for name in ("tests/README.md", ".github/CONTRIBUTING.md")),
    *(folder / "README.md" for folder in RESULTS),
]
"""All guides; those of the package's folders, each of which has one, among them."""


def blocks(guide, language):
    """The blocks of a language; ```` ```python (a reason) ```` is not meant to be run."""
    return re.findall(rf"^```{language}\n(.*?)^```", guide.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(*guides):
    """The commands in their bash blocks, each as it stands, a text over several lines included."""
    found = []
    for block in (block for guide in guides for block in blocks(guide, "bash")):
        lines = iter(block.splitlines())
        for command in lines:
            while not is_whole(command):
                command += "\n" + next(lines)
            if command.strip() and not command.startswith("#"):
                found.append(command)
    return found


def is_whole(command):
    try:
        shlex.split(command)
    except ValueError:  # a quotation is open
        return False
    return not command.endswith("\\")


def words_of(command):
    """The commands in a line, ``first && second``, each as its words."""
    words = [[]]
    for word in shlex.split(command.replace("\\\n", " ")):
        if word == "&&":
            words.append([])
        else:
            words[-1].append(word)
    return words


(MY_MODULE,) = [
    block
    for block in blocks(ROOT / "timm_ebl" / "training" / "README.md", "python")
    if block.startswith("# my_module.py")
]
"""The module with a model and a rule of the user's own."""
