"""The first hour with the package, by the README's own commands: from `git clone` to a class by a published model."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub
from readmes import README, ROOT, commands

GUIDES = README, *(ROOT / "timm_ebl" / name / "README.md" for name in ("hub", "training"))
COMMANDS = "\n".join(dict.fromkeys(commands(*GUIDES)))
FINE_TUNING = re.search(
    r"^python -c 'import os, PIL.*?^python train_ebl.py --dataset garments.*?$", COMMANDS, re.M | re.S
)
GARMENTS = {"Pullover", "Dress", "Coat", "Shirt"}

IMPORT = """
import timm, timm_ebl
model = timm.create_model("dchn_tiny_fashion_mnist", pretrained=True)
print(timm_ebl.__file__, model.pretrained_cfg["label_names"][1])
"""

RELOAD = """
import json, sys, timm, timm_ebl, torch
from PIL import Image
outputs = []
for source in sys.argv[2:]:
    model = timm.create_model(source, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.no_grad():
        output = model(transform(Image.open(sys.argv[1]).convert("RGB")).unsqueeze(0))[0].tolist()
    outputs.append(dict(zip(model.pretrained_cfg["label_names"], output, strict=True)))
print(json.dumps(outputs))
"""


def readme(beginning, **changes):
    """The README's command of this beginning, with a user's own words in place of its placeholders."""
    (command,) = [line for line in COMMANDS.splitlines() if line.startswith(beginning) and "--dry-run" not in line]
    for old, new in changes.items():
        assert old in command, command
        command = command.replace(old, str(new))
    return command


def environment(folder):
    """A fresh environment on this one's torch and timm, as `python -m venv` and `pip install torch` leave it."""
    venv.create(folder, system_site_packages=True, symlinks=True)
    (packages,) = folder.rglob("site-packages")
    packages.joinpath("tests.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    dropped = ("PYTHONPATH", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "PIP_CONSTRAINT")
    return {name: value for name, value in os.environ.items() if name not in dropped} | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        **dict.fromkeys(("PIP_NO_INDEX", "PIP_NO_DEPS"), "1"),
        "PIP_NO_BUILD_ISOLATION": "0",  # as pip reads it: no isolation
    }


@pytest.fixture
def repository():
    """This clone; a test of what is cloned is skipped where there is nothing to clone."""
    pytest.importorskip("setuptools", "77")
    pytest.importorskip("pip")
    if not all(map(shutil.which, ("git", "bash"))):
        pytest.skip("needs git and bash")
    asked = subprocess.run(["git", "-C", ROOT, "rev-parse", "--show-toplevel"], capture_output=True, text=True)
    if asked.returncode or Path(asked.stdout.strip()).resolve() != ROOT.resolve():
        pytest.skip(f"{ROOT} is no git checkout: {asked.stderr.strip() or 'it lies in another one'}")
    return ROOT


@pytest.mark.slow
def test_a_clone_leads_to_a_class_named_by_a_finetuned_published_and_reloaded_model(repository, tmp_path):
    """Everything is what is committed; folders: the clone, its parent, one to work in and one to predict in."""
    clone, work, elsewhere = (tmp_path / name for name in ("timm_ebl", "work", "elsewhere"))
    work.mkdir()
    elsewhere.mkdir()
    variables = dict(os.environ)

    def run(command, folder=work):
        ran = subprocess.run(["bash", "-ec", command], cwd=folder, env=variables, capture_output=True, text=True)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        return ran

    run(readme("git clone", **{"https://github.com/timm-ebl/timm_ebl": f"{repository} timm_ebl"}), tmp_path)
    variables = environment(clone / ".venv")
    run(readme("pip install -e", pip=f"{clone / '.venv' / 'bin' / 'python'} -m pip"), clone)  # by no other's pip

    (tmp_path / "mine.py").write_text(IMPORT)
    assert run("python mine.py", tmp_path).stdout.split() == [f"{clone / 'timm_ebl' / '__init__.py'}", "Trouser"]

    with Hub() as hub:
        variables |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": f"{tmp_path / 'cache'}"}
        variables["HF_HUB_DISABLE_XET"] = "1"  # the tests' Hub has no such storage
        command = FINE_TUNING[0].replace("train_ebl.py", f"{clone / 'train_ebl.py'}")
        trained = run(re.sub(r"--epochs \d+", "--epochs 1", command))
        assert "the weights and the free phase of dchn_tiny_cifar10.c_ep but for a new read-out of 4" in trained.stdout
        folder = trained.stdout.split("results in ")[1].strip()
        packaged = run(readme("python -m timm_ebl.hub package", **{"runs/NAME": folder}))
        names = {"runs/NAME": work / folder, "OWNER/NAME": "me/garments"}
        published = run(readme("python -m timm_ebl.hub publish", **names), elsewhere)
        assert ("models", "me/garments") in hub.repos

        image = next((work / "garments" / "test" / "Dress").iterdir())
        shutil.copy(image, elsewhere / "photo.png")
        sources = ["hf-hub:me/garments", f"local-dir:{work / folder}", "dchn_tiny_cifar10.c_ep_garments"]
        (elsewhere / "reload.py").write_text(RELOAD)
        reloaded = run(f"python reload.py photo.png {' '.join(sources)}", elsewhere)
        words = {"dchn_small_cifar10.c_ep": sources[0], " folder/of/images": "", "--top-k 3": "--json"}
        predicted = run(readme("python -m timm_ebl.tools.predict", **words), elsewhere)

    from_hub, from_run, from_package = json.loads(reloaded.stdout)
    best = {entry["name"]: entry["output"] for entry in json.loads(predicted.stdout)["classes"]}
    assert from_hub.keys() == GARMENTS
    assert from_hub == from_run
    assert from_package == pytest.approx(from_run, abs=1e-2)  # in 16 bits
    assert best == {name: pytest.approx(from_run[name], abs=1e-5) for name in best}
    assert next(iter(best)) == max(from_run, key=from_run.get)
    for ran in (trained, packaged, published, reloaded, predicted):
        assert ran.stderr == ""  # nothing is warned of, and libraries show no bars in a file
