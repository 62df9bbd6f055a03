"""Recipes are read by the core schema of YAML 1.2, and what is written is read alike by version 1.1."""

import math

import pytest
import yaml

from timm_ebl.training.yaml12 import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("-7", -7),
        ("010", 10),
        ("0o17", 15),
        ("0x1f", 31),
        ("true", True),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("-.inf", -math.inf),
        ("<<", "<<"),
    ],
)
def test_a_scalar_is_read_as_version_1_2_says(scalar, value):
    found = parse_yaml(f"a: {scalar}")["a"]
    assert found == value
    assert type(found) is type(value)


def test_what_is_written_is_read_alike_by_both_versions():
    texts = [
        "1e5",
        "1.5e-3",
        "no",
        "null",
        "~",
        "",
        "0x1",
        "0o17",
        "010",
        "1:30",
        "<<",
        "=",
        "*x",
        " a ",
        "ü",
        "a: b",
        "#",
    ]
    settings = {f"key {text}": text for text in texts} | {"numbers": [1, -2.5, 1e-5, 1e300, math.inf], "none": None}
    text = dump_yaml(settings)
    assert parse_yaml(text) == settings
    assert yaml.safe_load(text) == settings
    assert list(parse_yaml(text)) == list(settings)
