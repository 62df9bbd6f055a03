"""Random options, recipes, configurations and weights: a right result or one sentence, and nothing written elsewhere.

The whole suite takes the same examples every time; ``pytest -m fuzz`` takes twenty times as many (`conftest.py`).
"""

import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from timm_ebl.data.dataset import load_dataset
from timm_ebl.errors import EBLError
from timm_ebl.hub.__main__ import main as hub
from timm_ebl.models.weights import read_weights
from timm_ebl.rules.rule import list_rules
from timm_ebl.training.build import build_model, build_optimizer, build_transform
from timm_ebl.training.command_line import parse_config
from timm_ebl.training.config import TrainConfig, read_recipe, resolve
from timm_ebl.training.origin import settle_config
from timm_ebl.training.rule import build_rule

pytestmark = pytest.mark.fuzz

OPTIONS = [spec for spec in dataclasses.fields(TrainConfig) if spec.name not in ("resume", "force")]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [10**30, 1e400, 2**32, -0.0, "1e400", "nan", "None", "../..", "/", "\0", "é", "a\nb", "true", [], {}]
    ),
)
NESTED = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner), max_leaves=5
)
WORDS = st.one_of(
    st.sampled_from(["0", "1", "-1", "0.5", "1e-3", "2", "1e400", "nan", "inf", "", " ", "None", "False", "[]"]),
    st.sampled_from(["a=b", "widths=(4,4,4,4)", "sweeps=3", "pool=2.0", "compiled=False", "pretrained=true", "zero"]),
    st.sampled_from(["dchn_tiny_cifar10.c_ep", "dchn_tiny_mnist", "local-dir:.", "hf-hub:a/b", "grey", "colour"]),
    st.sampled_from(list_rules()),
    st.text(max_size=6).filter(lambda text: not text.startswith("-")),
)  # fmt: skip


@contextlib.contextmanager
def alone():
    """A folder to work in, which nothing may be written beside."""
    with tempfile.TemporaryDirectory() as outer:
        inner = Path(outer) / "inner"
        inner.mkdir()
        with contextlib.chdir(inner):
            yield inner
        assert [path.name for path in Path(outer).iterdir()] == ["inner"]


def end_of(command, *arguments):
    """Exit status and last words of a command that may end the process; 0 and nothing if it returns."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            command(*arguments)
        except SystemExit as end:
            return end.code, said.getvalue()
    return 0, ""


def refusal_of(call, *arguments):
    """The message of an expected error, nothing if there is none."""
    try:
        call(*arguments)
    except EBLError as error:
        return str(error)
    return ""


def is_one_sentence(text):
    return len(text.splitlines()) == 1 and text.endswith("\n") and "Traceback" not in text


@given(st.lists(st.tuples(st.sampled_from(OPTIONS), st.lists(WORDS, max_size=2)), min_size=1, max_size=3))
def test_a_command_line_is_a_configuration_or_refused_in_one_sentence(images, chosen):
    line = []
    for spec, values in chosen:
        line += [f"--{spec.name.replace('_', '-')}", *([] if spec.metadata["parse"] is bool else values)]
    with alone():
        status, said = end_of(parse_config, line)
        assert status in (0, 2)
        assert not status or is_one_sentence(said), said
        if not status:
            builds_or_says_why(parse_config(line), images)


def builds_or_says_why(config, images):
    train = load_dataset(str(images), "train")
    with contextlib.suppress(EBLError):
        build_transform(config, train)
        config, origin = settle_config(config)
        model = build_model(config, train, origin)
        build_rule(config, model)
        build_optimizer(config, model)


@given(
    st.one_of(
        st.dictionaries(st.sampled_from([*(spec.name for spec in OPTIONS), "preset", "epoch"]), NESTED, max_size=3),
        NESTED,
    )
)
def test_a_recipe_is_a_configuration_or_refused_in_one_sentence(content):
    with alone() as folder:
        recipe = folder / "recipe.yaml"
        with contextlib.suppress(yaml.YAMLError):
            recipe.write_text(yaml.safe_dump(content))
            reads_or_says_why(recipe)


@given(st.binary(max_size=60) | st.text(alphabet="abcepochs:-[]{}&*!|>\n 0123.'\"#", max_size=60).map(str.encode))
def test_any_bytes_are_a_recipe_or_refused_in_one_sentence(content):
    with alone() as folder:
        (folder / "recipe.yaml").write_bytes(content)
        reads_or_says_why(folder / "recipe.yaml")


def reads_or_says_why(recipe):
    message = refusal_of(lambda: resolve(read_recipe(recipe)))
    assert len(message.splitlines()) <= 1, message


def places(value, path=()):
    """Where something stands in a tree of mappings and lists."""
    yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def put(value, path, new):
    """The tree with something else at a place."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


@given(st.sampled_from(["config.json", "summary.json"]), st.randoms(use_true_random=False), NESTED)
def test_a_checkpoint_with_any_record_is_verified_or_refused_in_one_sentence(finished, images, name, random, new):
    with alone() as folder:
        spoiled = Path(shutil.copytree(finished, folder / "run"))
        record = json.loads((spoiled / name).read_text())
        (spoiled / name).write_text(json.dumps(put(record, random.choice(list(places(record))), new)))
        status, said = end_of(hub, ["verify", str(spoiled), "--dataset", str(images)])
        assert status in (0, 1)
        assert not status or is_one_sentence(said), said


@given(st.randoms(use_true_random=False), st.integers(0, 3), st.binary(max_size=20))
def test_any_weight_file_is_read_or_refused_in_one_sentence(finished, random, kind, noise):
    content = bytearray((finished / "model.safetensors").read_bytes())
    at = random.randrange(len(content)) if kind else random.randrange(300)
    content[at : at + (len(noise) if kind < 2 else random.randrange(len(content)))] = noise
    with alone() as folder:
        (folder / "model.safetensors").write_bytes(content)
        message = refusal_of(read_weights, folder / "model.safetensors")
        assert len(message.splitlines()) <= 1, message
