"""Studies as jobs of a cluster: what is submitted, with a stand-in for Slurm, and what the jobs do."""

import os
import pickle
import re
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from studies import stand_in, study_of

from timm_ebl.errors import ConfigError
from timm_ebl.tools.study import cluster, process
from timm_ebl.tools.study.machine import most_jobs

submitit = pytest.importorskip("submitit")

SEEDS = [{"algo": ["c-ep"], "seed": [0, 1, 2]}]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with an `sbatch` that keeps the script which it is given, and an `srun`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/script\necho Submitted batch job 123\n')
    (folder / "srun").write_text("#!/bin/sh\n")
    for path in folder.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "script"


def test_the_cells_without_a_result_are_submitted_to_slurm_as_an_array(tmp_path, slurm):
    study, folder = study_of(tmp_path, grids=SEEDS)
    folder.write_failure(study.cells[1], "error: no")
    said = []
    given = {"partition": "fast", "minutes": 30, "gpus": 2, "cpus": 3, "at_once": 1, "slurm": {"account": "me"}}
    ids = cluster.submit(folder, study.cells, "mine", given, said.append)
    options = set(re.findall(r"^#SBATCH --(\S+)$", slurm.read_text(), re.MULTILINE))
    assert {"array=0-1%1", "gpus-per-node=2", "cpus-per-task=3", "time=30", "partition=fast", "account=me"} <= options
    assert "job-name=mine" in options
    assert any(option.startswith("signal=USR2@") for option in options)
    assert ids == ["123_0", "123_1"]
    assert said == ["submitted 2 cells as jobs 123_0 to 123_1, 1 at once"]


@contextmanager
def handlers(wanted):
    """Other handlers of signals."""
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def never(*_):
    raise TimeoutError("a job waits for ever")


def test_a_job_runs_its_cell_and_is_queued_again_where_it_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "SCRIPT", stand_in(tmp_path / "run.py", "waits", "completes"))
    study, folder = study_of(tmp_path, grids=SEEDS)
    assert cluster.CellJob(folder, study.cells[1])() == "completed"
    job, again = cluster.CellJob(folder, study.cells[0]), []

    def stop():
        while not (folder.run(study.cells[0]) / "starts").exists():
            time.sleep(0.02)
        time.sleep(0.1)
        assert cluster.CellJob(folder, study.cells[0])() == "unfinished"  # submitted twice: the other one has it
        os.kill(os.getpid(), signal.SIGUSR2)

    with handlers({signal.SIGUSR2: lambda *_: again.append(job.checkpoint()), signal.SIGALRM: never}):
        threading.Thread(target=stop).start()
        signal.alarm(60)
        assert job() == "unfinished"  # in the thread that submitit's handler interrupts
    (again,) = again
    (folder.run(study.cells[0]) / "go").touch()
    assert pickle.loads(pickle.dumps(again.function))() == "completed"
    assert (folder.run(study.cells[0]) / "starts").read_text() == "xx"
    assert (folder.run(study.cells[1]) / "starts").read_text() == "x"


@pytest.mark.slow
def test_without_slurm_a_process_in_the_background_runs_the_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)
    study, folder = study_of(tmp_path, settings={"epochs": 1, "model": "dchn_huge"}, grids=[{"seed": [0]}])
    said = []
    cluster.submit(folder, study.cells, "mine", {"at_once": 9999, "gpus": 0, "minutes": 1}, said.append)
    jobs = most_jobs(study.cells)
    assert re.fullmatch(rf"there is no Slurm here: process \d+ runs 1 cells, {jobs} at once", said[0])
    assert jobs <= os.cpu_count()
    for _ in range(2400):
        if folder.outcome(study.cells[0]).status == "failed":
            break
        time.sleep(0.05)
    assert "dchn_huge" in folder.outcome(study.cells[0]).reason


@pytest.mark.parametrize("given", [{"time": 3}, {"gpus": -1}, {"minutes": "long"}, {"partition": 3}, {"slurm": "x"}])
def test_what_a_cluster_cannot_be_given_is_refused(given):
    with pytest.raises(ConfigError, match=f"The recipe's cluster.*{next(iter(given))}"):
        cluster.check_cluster(given)


def test_without_submitit_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(cluster, "submitit", None)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[cluster\]"'):
        cluster.check_cluster({})
