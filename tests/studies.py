"""Recipes of studies, and folders of runs as a study leaves them, made without training."""

import json

import torch
from safetensors.torch import save_file

from timm_ebl.tools.study.folder import StudyFolder
from timm_ebl.tools.study.grid import read_study
from timm_ebl.training.yaml12 import dump_yaml

STAND_IN = """
import json, os, sys, time, signal
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--output-dir") + 1])
assert "--resume" in sys.argv
assert os.environ["OMP_NUM_THREADS"] == "1"
out.mkdir(parents=True, exist_ok=True)
seed = int(out.name.rpartition("=")[2])
with open(out / "starts", "a") as file:
    file.write("x")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
summary = {"algo": "a", "model": "m", "dataset": "d", "epochs": 1, "seed": seed, "seconds": 1.0}
end = BEHAVIOUR[seed % len(BEHAVIOUR)]
if end == "fails":
    print("some words", "error: it cannot be done.", sep="\\n", file=sys.stderr)
    sys.exit(1)
if end == "waits":
    while not (out / "go").exists():
        time.sleep(0.02)
if end == "crashes":
    print("epoch 1: all is well", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGABRT)
if end == "diverges":
    (out / "summary.json").write_text(json.dumps(summary | {"status": "diverged", "reason": "not finite"}))
    sys.exit(3)
summary |= {"status": "completed", "best_epoch": 1, "held_out_error": None, "test_images": 4, "versions": {}}
(out / "metrics.jsonl").write_text(json.dumps(
    {"epoch": 1, "train_error": 9.0, "held_out_error": None, "energy": 0.0, "residual": 0.5, "seconds": 1.0}) + "\\n")
(out / "summary.json").write_text(json.dumps(summary | {"test_error": 10.0 + seed}))
"""
"""A script in place of `train_ebl.py`, that ends as the seed says."""


def write_recipe(path, **parts):
    path.write_text(dump_yaml(parts))
    return path


def stand_in(path, *behaviour):
    path.write_text(STAND_IN.replace("BEHAVIOUR", repr(behaviour)))
    return path


def study_of(tmp_path, **parts):
    """A study and its folder."""
    folder = StudyFolder(tmp_path / "study")
    folder.create()
    return read_study(write_recipe(tmp_path / "recipe.yaml", **parts)), folder


def complete(folder, cell, wrong, labels=None):
    """Leave the results of a run that gets some of the test images wrong, given as zeros and ones."""
    wrong = torch.tensor(wrong)
    labels = torch.zeros(len(wrong), dtype=torch.int32) if labels is None else labels
    run = folder.run(cell)
    run.mkdir(parents=True)
    save_file({"predicted": labels + wrong.int(), "labels": labels}, run / "predictions.safetensors")
    epoch = {"epoch": 1, "train_error": 9.0, "held_out_error": None, "energy": 0.0, "residual": 0.25, "seconds": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
    summary = {"algo": cell.config.algo, "model": "m", "dataset": cell.dataset, "epochs": 1, "seed": cell.config.seed}
    summary |= {"status": "completed", "best_epoch": 1, "held_out_error": None, "seconds": 100.0, "versions": {}}
    summary |= {"data": "of these images", "test_images": len(wrong), "test_error": float(wrong.double().mean() * 100)}
    (run / "summary.json").write_text(json.dumps(summary))
