"""Installing as the README says, and importing from where a user's own scripts are."""

import importlib
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import timm

import timm_ebl
from timm_ebl.models import requirements

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_script_beside_an_editable_clone_finds_the_package(tmp_path):
    pytest.importorskip("setuptools", "77")
    pytest.importorskip("pip")
    clone, environment = tmp_path / "timm_ebl", tmp_path / "env"
    clone.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "timm_ebl"):
        (clone / name).symlink_to(ROOT / name)
    venv.create(environment, system_site_packages=True, symlinks=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    (packages,) = environment.rglob("site-packages")
    here = [path for path in sys.path if path.endswith("-packages")]  # torch and timm, if these tests have their own
    (packages / "tests.pth").write_text("\n".join(here))
    script = tmp_path / "mine.py"
    script.write_text("import timm, timm_ebl; print(timm_ebl.__file__, timm.create_model('dchn_tiny_mnist').in_chans)")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words):
        ran = subprocess.run([python, *words], cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    run("-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--editable", str(clone))
    assert run("mine.py").split() == [str(clone / "timm_ebl" / "__init__.py"), "1"]


def test_the_oldest_timm_is_that_of_the_installation():
    assert f'"timm>={requirements.OLDEST_TIMM}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("version", ["0.9.16", "1.0.9", "1.0.30", "1.0"])
def test_a_timm_that_is_too_old_is_named_in_one_sentence(monkeypatch, version):
    monkeypatch.setattr(timm, "__version__", version)
    assert requirements.missing_of_timm() == (
        f"timm_ebl needs timm 1.0.31 or later, not {version}: pip install -U timm."
    )


@pytest.mark.parametrize("version", ["1.0.31.dev0", "1.0.31", "1.1", "2.0.0.dev0"])
def test_a_later_timm_is_taken(monkeypatch, version):
    monkeypatch.setattr(timm, "__version__", version)
    assert requirements.missing_of_timm() is None


@pytest.mark.parametrize("name", ["_factory.load_model_config_from_hf", "_input.update_model_input_size"])
def test_a_timm_that_lacks_what_is_needed_is_named_in_one_sentence(monkeypatch, name):
    monkeypatch.delattr(f"timm.models.{name}")
    assert f"has no timm.models.{name} any more" in requirements.missing_of_timm()
    with pytest.raises(ImportError, match="any more, which timm_ebl needs") as refusal:
        importlib.reload(timm_ebl)
    assert "\n" not in str(refusal.value)


def test_what_is_used_of_timms_inside_is_looked_for_on_importing():
    used = set()
    for path in (ROOT / "timm_ebl").rglob("*.py"):
        if path.name != "requirements.py":
            for module, names in re.findall(r"from (timm\.[\w.]*\._\w+) import ([\w, ]+)", path.read_text()):
                used |= {(module, name.strip()) for name in names.split(",")}
    known = {(module, name) for module, names in requirements._INTERNAL.items() for name in names}
    assert used <= known  # add it to requirements._INTERNAL
    assert used
