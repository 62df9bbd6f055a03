"""The plan of the house: imports run one way, on few levels, between files that can be read in one sitting."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "timm_ebl"

EVERYBODY = {"errors", "arguments", "registry", "_version"}
CORE = ["kernels", "energy", "relaxation", "rules"]
MAY_IMPORT = {
    "data": set(),
    "kernels": set(),
    "energy": {"kernels"},
    "relaxation": {"kernels", "energy"},
    "rules": {"kernels", "energy", "relaxation"},
    "models": {*CORE, "data"},
    "training": {*CORE, "data", "models"},
    "tools": {*CORE, "data", "models", "training"},
    "hub": {*CORE, "data", "models", "training"},
    "timm_ebl": {*CORE, "models"},
}
"""The parts of the package, and those that each may import beside itself and what everybody may."""

MOST_LEVELS = 11
MOST_LINES = 300
MOST_CORE_LINES = 1400


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def part_of(module):
    """The subpackage or file below `timm_ebl` that a module is in; of the package itself its own name."""
    return module.split(".")[1] if "." in module else module


def is_for_types_alone(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports_in(node, module, types):
    """The modules of the package that are imported in a syntax tree, inside functions too."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name in MODULES)
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - child.level] if child.level else []
            source = ".".join([*above, *filter(None, [child.module])])
            found = (f"{source}.{alias.name}" for alias in child.names)
            yield from (name if name in MODULES else source for name in found if {name, source} & MODULES.keys())
        elif types or not is_for_types_alone(child):
            yield from imports_in(child, module, types)


@functools.cache
def imports_of(module, types=False):
    return {*imports_in(ast.parse(MODULES[module].read_text()), module, types)} - {module}


@functools.cache
def level(module):
    """1 for a file that imports no other one, else one more than the highest that it imports."""
    return 1 + max(map(level, imports_of(module)), default=0)


def lines(*paths):
    return sum(path.read_text().count("\n") for path in paths)


def test_the_parts_are_those_of_the_plan():
    assert {part_of(module) for module in MODULES} == MAY_IMPORT.keys() | EVERYBODY


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part):
    allowed = MAY_IMPORT[part] | EVERYBODY | {part}
    for module in MODULES:
        if part_of(module) == part:
            strangers = {name for name in imports_of(module, types=True) if part_of(name) not in allowed}
            assert not strangers, f"{module} may not import {', '.join(strangers)}"


def test_what_everybody_may_import_imports_nothing_else():
    for name in EVERYBODY:
        assert {part_of(each) for each in imports_of(f"timm_ebl.{name}", types=True)} <= EVERYBODY


def test_no_import_leads_back():
    under_way = []

    def follow(module):
        assert module not in under_way, f"{' -> '.join(under_way)} -> {module}"
        under_way.append(module)
        for name in imports_of(module):
            if name not in seen:
                follow(name)
        under_way.pop()
        seen.add(module)

    seen = set()
    for module in MODULES:
        follow(module)


def test_no_file_is_on_more_than_eleven_levels():
    highest = max(MODULES, key=level)
    assert level(highest) <= MOST_LEVELS, f"{highest} is on level {level(highest)}"


def test_no_file_is_longer_than_can_be_read_in_one_sitting():
    files = [ROOT / "train_ebl.py", *PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    long = {str(path.relative_to(ROOT)): lines(path) for path in files if lines(path) > MOST_LINES}
    assert not long


def test_the_core_is_read_in_25_minutes():
    files = {*(PACKAGE / "energy").glob("*.py"), *(PACKAGE / "relaxation").glob("*.py")}
    files -= {PACKAGE / "relaxation" / "response.py"}
    files |= {PACKAGE / "rules" / name for name in ("contrastive.py", "reference.py")}
    assert sum(bool(line.strip()) for path in files for line in path.read_text().splitlines()) < MOST_CORE_LINES
