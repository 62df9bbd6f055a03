"""YAML as its version 1.2 reads it, without what a file of settings cannot mean: repeated keys and references.

PyYAML reads version 1.1, where ``1:30`` is 90, ``no`` is false and ``1e-3`` is a text.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

__all__ = ["dump_yaml", "parse_yaml", "read_yaml"]

_LONGEST = 1_000_000
"""Letters of a file of settings; what is longer is something else."""

_SCALARS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
"""What an unquoted scalar is read as, and with what it may begin: the core schema (YAML 1.2.2, Section 10.3.2)."""


class _Loader(yaml.SafeLoader):
    """Reads by the core schema alone."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's name for it)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="a value is written out, not referred to by *", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        ((key, count),) = Counter(str(key.value) for key, _ in node.value).most_common(1) or [("", 0)]
        if count > 1:
            raise yaml.MarkedYAMLError(problem=f"{key!r} is given {count} times", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        return int(node.value, 0 if node.value[1:2] in ("o", "x") else 10)


class _Dumper(yaml.SafeDumper):
    """Quotes what a reader of either version would take for something other than a text."""


for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)


def read_yaml(path: str | Path) -> Any:
    """What a file of settings says (`parse_yaml`).

    Raises:
        ConfigError: It is longer than such files are, or no YAML.
        OSError: It cannot be read.
        ValueError: It is no text, or the path none.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise ConfigError(f"it has more than {_LONGEST:,} letters")
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """What a YAML document says, in mappings, lists, texts, numbers, ``True``, ``False`` and ``None``.

    Raises:
        ConfigError: It is no YAML, repeats a key, refers from one place to another, or is nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"line {error.problem_mark.line + 1}: {error.problem}") from None
    except RecursionError:
        raise ConfigError("lists are nested too deeply in it") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(str(error)) from None


def dump_yaml(settings: Any) -> str:
    """The document that `parse_yaml` reads as these settings, keys in their order."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
