"""What lies among the checkpoints and is none, or cannot be read, is passed over with a warning and never removed."""

import json
import shutil

import pytest
from noise_runs import Run

from timm_ebl.errors import ConfigError
from timm_ebl.training.manifest import find_damage, render_manifest
from timm_ebl.training.run_folder import RunFolder, list_checkpoints


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints after two and four steps."""
    run = Run(tmp_path)
    for _ in range(2):
        run.step(2)
        run.checkpoints.save()
    return tmp_path


def rewrite(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def resumed(folder, **settings):
    run = Run(folder, **settings)
    assert run.checkpoints.resume(force=False)
    return run


def test_checkpoints_are_ordered_by_number(tmp_path):
    run = Run(tmp_path)
    for epoch, step in [(9999, 999_999), (9999, 1_000_000), (10_000, 0), (100_000, 3)]:
        run.progress.epoch, run.progress.step = epoch, step
        run.checkpoints.save()
        assert list_checkpoints(tmp_path)[-1] == f"epoch-{epoch:04d}-step-{step:06d}"
    assert list_checkpoints(tmp_path) == ["epoch-10000-step-000000", "epoch-100000-step-000003"]
    assert resumed(tmp_path).progress.epoch == 100_000


@pytest.mark.parametrize(
    "spoil",
    [
        lambda last: rewrite(last / "manifest.json", settings=None),
        lambda last: rewrite(last / "manifest.json", settings=[]),
        lambda last: rewrite(last / "manifest.json", settings={"seed": 1}),
        lambda last: rewrite(last / "manifest.json", format=None),
        lambda last: rewrite(last / "manifest.json", format=0),
        lambda last: rewrite(last / "manifest.json", files={}),
        lambda last: rewrite(last / "manifest.json", sha256=None),
        lambda last: (last / "manifest.json").write_text("[" * 100_000),
        lambda last: (last / "manifest.json").write_text("[1]"),
        lambda last: (last / "manifest.json").write_bytes(b"\xff"),
        lambda last: (last / "manifest.json").unlink(),
        lambda last: ((last / "run.pt").unlink(), (last / "run.pt").mkdir()),
        lambda last: (last / "run.pt").write_bytes(b"PK"),
        lambda last: shutil.copyfile(last / "run.pt", last / "process-0.pt"),
    ],
)
def test_what_cannot_be_trusted_is_passed_over_and_kept(saved, capsys, spoil):
    last = saved / "epoch-0001-step-000004"
    spoil(last)
    left = sorted(path.name for path in last.iterdir())
    run = resumed(saved)
    assert f"{last} is damaged (" in capsys.readouterr().err
    assert run.progress.step == 2
    for _ in range(4):
        run.step(1)
        run.checkpoints.save()
    assert list_checkpoints(saved)[-2:] == ["epoch-0001-step-000005", "epoch-0001-step-000006"]
    (kept,) = saved.glob("epoch-0001-step-000004.unused-*")
    assert sorted(path.name for path in kept.iterdir()) == left
    assert resumed(saved).progress.step == 6


def test_a_whole_manifest_of_other_settings_is_damage_or_gone_on_with(saved):
    path = saved / "epoch-0001-step-000004" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_bytes(render_manifest(content["settings"] | {"processes": 10**9}, content["files"]))
    assert find_damage(path.parent) == "manifest.json does not list its files"
    path.write_bytes(render_manifest({"processes": 1}, content["files"]))  # of a version that knew no others
    run = resumed(saved)
    assert run.checkpoints.latest is None  # the epoch begins anew
    assert run.progress.epoch == 1


def test_a_manifest_of_which_any_character_is_another_is_noticed(saved):
    path = saved / "epoch-0001-step-000004" / "manifest.json"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        if chr(content[place]).isalnum() and content[place] != ord("x"):
            path.write_bytes(content[:place] + b"x" + content[place + 1 :])
            assert find_damage(path.parent), place
    path.write_bytes(content)
    assert find_damage(path.parent) is None


def test_strange_entries_are_named_and_stay(saved, capsys):
    (saved / "epoch-0009-step-000001").write_text("a file")
    (saved / "epoch-best").mkdir()
    (saved / "epoch-0002-step-000000-copy").mkdir()
    (saved / "notes.txt").touch()
    (saved / ".hidden").touch()
    (saved / "epoch-0008-step-000001").symlink_to(saved / "epoch-0001-step-000004")
    strange = {path.name for path in saved.iterdir()} - {*list_checkpoints(saved)}
    run = resumed(saved)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(strange) - 1
    assert all(line.endswith("is no checkpoint and is passed over") for line in said)
    assert run.progress.step == 4
    for _ in range(3):
        run.step(1)
        run.checkpoints.save()
    assert {path.name for path in saved.iterdir()} - {*list_checkpoints(saved)} == strange
    assert len(list_checkpoints(saved)) == 2


def test_another_model_is_refused_even_by_force(saved):
    with pytest.raises(ConfigError, match=r"is of another model, which --force does not change \(.*\)\.$"):
        Run(saved, width=7).checkpoints.resume(force=True)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "summary.json", "metrics.jsonl", "curves.png"])
def test_files_of_something_else_are_not_replaced(tmp_path, name, resume):
    (tmp_path / name).write_text("precious")
    with pytest.raises(ConfigError, match=f"holds {name} of something else, which a run would replace"):
        RunFolder.create(tmp_path, "", resume)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_checkpoints_without_a_run_and_a_run_without_checkpoints_are_not_gone_on_with(tmp_path):
    Run(tmp_path / "checkpoints").checkpoints.save()
    with pytest.raises(ConfigError, match="holds checkpoints of something else"):
        RunFolder.create(tmp_path, "", resume=True)
    (tmp_path / "args.yaml").touch()
    assert RunFolder.create(tmp_path, "", resume=True).path == tmp_path
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="holds a run without checkpoints"):
        RunFolder.create(tmp_path, "", resume=True)
