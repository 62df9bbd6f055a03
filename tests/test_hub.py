"""Publishing with the real client against a Hub on this machine: what is sent, tried again, checked and refused."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from accelerate import Accelerator
from hub_server import TOKEN, Fault, Repo
from published_runs import write_run

from timm_ebl.data.dataset import load_dataset
from timm_ebl.data.requests import is_transient, retry
from timm_ebl.errors import CheckpointError, HubError
from timm_ebl.hub.__main__ import main
from timm_ebl.hub.package import package
from timm_ebl.hub.publish import check_access, publish
from timm_ebl.hub.verify import verify
from timm_ebl.training.config import TrainConfig
from timm_ebl.training.records import card_error
from timm_ebl.training.trained import TrainedModel

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def test_images(images):
    return load_dataset(str(images), "test")


FILES = ["README.md", "args.yaml", "config.json", "curves.png", "metrics.jsonl", "model.safetensors", "summary.json"]


def test_a_run_goes_to_the_hub_and_comes_back_the_same(hub, run, test_images, capsys):
    url = publish(run, "me/net", test=test_images)
    files = hub.repos["models", "me/net"].commits[-1]
    assert sorted(files) == FILES
    assert url.startswith(f"{hub.url}/me/net/commit/")
    assert re.findall(r"^ +new +(\S+)", capsys.readouterr().out, re.MULTILINE) == FILES
    x = torch.randn(5, 3, 32, 32)
    local, remote = (timm.create_model(n, pretrained=True).eval() for n in (f"local-dir:{run}", "hf-hub:me/net"))
    assert torch.equal(local(x), remote(x))
    assert verify("me/net", test=test_images).error == json.loads(files["summary.json"])["test_error"]
    assert 'timm.create_model("hf-hub:me/net", pretrained=True)' in files["README.md"].decode()


def test_a_second_publish_sends_what_changed_the_card_too(hub, run, test_images, capsys):
    publish(run, "me/net", test=test_images)
    assert publish(run, "me/net", test=test_images) == f"{hub.url}/me/net"
    assert hub.count("POST .*/commit/") == 1
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"seconds": 60.0, "note": "It was trained in a hurry."}))
    capsys.readouterr()
    publish(run, "me/net", test=test_images)
    changed = re.findall(r"^ +changed +(\S+)", capsys.readouterr().out, re.MULTILINE)
    assert changed == ["README.md", "summary.json"]
    assert (hub.count("POST .*/commit/"), hub.count("PUT /storage/")) == (2, 1)
    assert "trained in a hurry" in hub.repos["models", "me/net"].commits[-1]["README.md"].decode()


STEPS = {
    "token": "GET /api/whoami",
    "look": "GET /api/models/me/net",
    "create": "POST /api/repos/create",
    "preupload": "POST .*/preupload/",
    "batch": "POST .*/objects/batch",
    "upload": "PUT /storage/",
    "commit": "POST .*/commit/",
    "check": "GET /api/models/me/net/tree/",
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.DROPPED, Fault.DROPPED_AFTER])
def test_every_request_is_tried_again(hub, run, test_images, step, fault, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.plan(fault, STEPS[step], times=2 if fault is not Fault.DROPPED_AFTER else 1)
    publish(run, "me/net", test=test_images)
    repo = hub.repos["models", "me/net"]
    assert sorted(repo.commits[-1]) == FILES
    assert len(repo.commits) == 2  # the empty one, and one alone even if its answer was lost


def test_an_interrupted_publish_goes_on_where_it_was(hub, run, test_images, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.plan(Fault.UNAVAILABLE, STEPS["commit"], times=3)
    with pytest.raises(HubError, match=r"out of order \(status 503\): try again later; publish again to go on"):
        publish(run, "me/net", test=test_images)
    assert hub.count(STEPS["upload"]) == 1
    publish(run, "me/net", test=test_images)
    assert hub.count(STEPS["upload"]) == 1
    assert sorted(hub.repos["models", "me/net"].commits[-1]) == FILES


def test_what_arrives_damaged_is_noticed(hub, run, test_images):
    hub.plan(Fault.CORRUPT, STEPS["commit"])
    with pytest.raises(HubError, match=r"model.safetensors arrived damaged at me/net"):
        publish(run, "me/net", test=test_images)


def test_a_packaged_checkpoint_is_published_only_if_its_figure_holds(hub, tmp_path, run, images, test_images):
    (tmp_path / "records").mkdir()
    name = package(TrainedModel.open(run), weights=tmp_path / "all", records=tmp_path / "records")
    folder = tmp_path / "all" / name
    for path in (tmp_path / "records" / name).iterdir():
        path.rename(folder / path.name)
    publish(folder, "me/net", dataset=str(images))
    sent = hub.repos["models", "me/net"].commits[-1]
    assert sent["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    (tmp_path / "README.md").write_bytes(sent["README.md"])
    assert card_error(tmp_path / "README.md") == card_error(folder / "README.md")

    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(re.sub(r"(type: error_rate\n      value:) [\d.]+", r"\1 0.5", card))
    with pytest.raises(CheckpointError, match=r"README.md says 0.50 %"):
        publish(folder, "me/other", dataset=str(images))
    assert ("models", "me/other") not in hub.repos


def test_weights_that_are_not_those_of_the_summary_are_not_published(hub, images, tmp_path, test_images):
    run = write_run(tmp_path / "wrong", images, test_error=99.0)
    with pytest.raises(CheckpointError, match=r"summary.json says 99.00 %"):
        publish(run, "me/net", test=test_images)
    assert not hub.repos


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(hub, run, images, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(run / "no-token"))
    main(["publish", str(run), "--repo-id", "me/net", "--dry-run", "--dataset", str(images)])
    out = capsys.readouterr().out
    assert re.findall(r"^ +new +(\S+)", out, re.MULTILINE) == FILES
    assert "nothing was sent" in out
    assert not hub.count("POST|PUT")


class TestRefusals:
    def refused(self, words, repo_id="me/net"):
        with pytest.raises(HubError) as refusal:
            check_access(repo_id)
        assert all(word in str(refusal.value) for word in words), refusal.value
        assert "\n" not in str(refusal.value)

    def test_no_token(self, hub, monkeypatch, tmp_path):
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        self.refused(["there is no access token", "hf auth login", "HF_TOKEN"])

    def test_a_wrong_token(self, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        self.refused(["does not accept the access token", "hf auth login"])

    def test_a_token_that_may_only_read(self, hub):
        hub.role = "read"
        self.refused(["may not write to me/net", "write access"])

    def test_the_name_of_somebody_else(self, hub):
        self.refused(["may not write to you/net", "this one writes to me"], "you/net")

    def test_permission_that_only_the_hub_can_judge(self, hub, run, test_images, monkeypatch):
        hub.role = "fineGrained"
        with pytest.raises(HubError, match="the access token has no permission for me/net"):
            publish(run, "me/net", test=test_images)

    @pytest.mark.parametrize("name", ["net", "a/b/c", "me/net!", ""])
    def test_what_is_no_name(self, hub, name):
        self.refused([repr(name), "name"], name)
        assert not hub.requests

    @pytest.mark.parametrize(
        ("files", "holder"),
        [
            ({"config.json": b'{"architecture": "resnet18"}'}, "another model, resnet18"),
            ({"config.json": b"{"}, "another model"),
            ({"data.csv": b""}, "files of another kind"),
        ],
    )
    def test_a_name_that_is_taken(self, hub, files, holder):
        hub.repos["models", "me/net"] = Repo(commits=[files])
        self.refused(["me/net is taken", holder, "choose another"])

    def test_a_name_taken_by_another_of_our_models(self, hub, run, test_images):
        publish(run, "me/net", test=test_images)
        check_access("me/net", "dchn_tiny_cifar10")
        with pytest.raises(HubError, match="taken, by another model, dchn_tiny_cifar10"):
            check_access("me/net", "dchn_mnist")

    def test_a_repository_that_is_empty_is_free(self, hub):
        hub.repos["models", "me/net"] = Repo(commits=[{".gitattributes": b""}])
        check_access("me/net")

    def test_no_network(self, hub, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        self.refused(["http://127.0.0.1:9 cannot be reached", "check the network"])

    def test_offline(self, hub, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        self.refused(["HF_HUB_OFFLINE"])


def test_only_what_may_pass_is_tried_again(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    tries = []

    def fail(error):
        tries.append(1)
        raise error

    for error, count in ((ConnectionResetError("x"), 3), (ValueError("x"), 1), (KeyError("x"), 1)):
        tries.clear()
        with pytest.raises(type(error)):
            retry(lambda error=error: fail(error), pauses=(0, 0))
        assert len(tries) == count
        assert is_transient(error) == (count > 1)


@pytest.mark.slow
def test_training_publishes_and_a_fresh_process_has_the_same_logits(hub, tmp_path, images):
    out = tmp_path / "run"
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    arguments = f"--dataset {images} --holdout 0.25 --epochs 2 --batch-size 4 --threads 1 --output-dir {out}"
    command = [sys.executable, str(ROOT / "train_ebl.py"), *arguments.split(), "--model-kwargs", "widths=[4,4,4,4]"]
    trained = subprocess.run(
        [*command, "--push-to-hub", "me/net"], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    assert "published, checksums compared" in trained.stdout
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import timm, torch, timm_ebl\n"
        "model = timm.create_model('hf-hub:me/net', pretrained=True).eval()\n"
        f"torch.save(model(torch.load('{tmp_path / 'x.pt'}')).detach(), '{tmp_path / 'logits.pt'}')\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=tmp_path)
    here = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert torch.equal(here(x), torch.load(tmp_path / "logits.pt"))


def test_access_is_checked_before_training(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    script = runpy.run_path(str(ROOT / "train_ebl.py"))
    config = TrainConfig(push_to_hub="me/net", output_dir=str(tmp_path / "run"))
    with pytest.raises(HubError, match="does not accept the access token"):
        script["train"](config, Accelerator(cpu=True))
    assert not (tmp_path / "run").exists()
