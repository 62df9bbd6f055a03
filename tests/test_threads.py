"""How many threads a run has: never more than the cores, and by default a share of what the container may use."""

import os

import pytest
import torch

from timm_ebl.errors import ConfigError
from timm_ebl.training.threads import cpu_quota, set_threads


@pytest.fixture(autouse=True)
def threads():
    """The number of threads before the test, which is restored."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch):
    """A machine of eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return monkeypatch


def test_more_threads_than_cores_are_refused_before_they_start(machine, threads):
    with pytest.raises(ConfigError, match=r"--threads is at most 8.*not 5000"):
        set_threads(5000)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("quota", "processes", "expected"),
    [(None, 1, 8), (None, 3, 2), (2.0, 1, 2), (2.5, 1, 2), (0.5, 1, 1), (64.0, 1, 8), (4.0, 2, 2), (None, 16, 1)],
)
def test_the_default_is_a_share_of_the_cores_and_of_the_quota(machine, quota, processes, expected):
    machine.setattr("timm_ebl.training.threads.cpu_quota", lambda: quota)
    set_threads(None, processes)
    assert torch.get_num_threads() == expected


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container_is_read_from_its_control_group(files, cores, tmp_path):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == cores
