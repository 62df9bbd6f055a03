"""An expected error ends a command by one line on stderr and its exit status; any other one stays a traceback."""

import inspect
import os
import pickle
import re
import signal
import sys
from pathlib import Path

import pytest

from timm_ebl import errors
from timm_ebl.errors import ConfigError, Diverged, EBLError, HubError, Interrupted, OutputError, one_sentence

ALL = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, EBLError)]


def end(error):
    with pytest.raises(SystemExit) as stop, one_sentence():
        raise error
    return stop.value.code


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("--lr is at least 0."), 1, "error: --lr is at least 0."),
        (HubError("the library said:\n\n  no\r\n  more than that"), 1, "error: the library said: no more than that"),
        (OutputError("the disk is full."), 1, "error: the disk is full."),
        (Diverged("not finite: head.weight"), 3, "diverged: not finite: head.weight"),
        (Interrupted("stopped by SIGUSR1", signal.SIGUSR1), 138, "stopped by SIGUSR1"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: [Errno 13] Permission denied: '/x'"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
        (KeyboardInterrupt(signal.SIGHUP), 129, "stopped by SIGHUP"),
    ],
)
def test_an_expected_error_is_one_line_and_a_status(capsys, error, status, line):
    assert end(error) == status
    assert capsys.readouterr() == ("", line + "\n")


def test_no_other_module_has_exceptions_of_its_own():
    sources = [path for path in Path(errors.__file__).parent.glob("*.py") if path.name != "errors.py"]
    assert [
        path.name for path in sources if re.search(r"^class .*(Error|Exception)\b.*:$", path.read_text(), re.M)
    ] == []


def test_every_error_travels_between_processes_in_one_line():
    for kind in {*ALL} - {Interrupted}:
        copy = pickle.loads(pickle.dumps(kind("one\ntwo")))
        assert (type(copy), str(copy), copy.args) == (kind, "one two", ("one\ntwo",))


def test_the_first_process_of_a_machine_speaks_for_all(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert end(ConfigError("wrong")) == 1
    assert capsys.readouterr().err == ""
    assert end(OutputError("the disk of this process is full.")) == 1
    assert capsys.readouterr().err == "error: the disk of this process is full.\n"


def test_a_closed_stderr_does_not_hide_the_status(monkeypatch, tmp_path):
    with open(tmp_path / "closed", "w") as closed:
        pass
    monkeypatch.setattr("sys.stderr", closed)
    assert end(Diverged("not finite")) == 3


@pytest.mark.parametrize("missing", [True, False])
def test_a_command_that_prints_nothing_needs_no_stdout(monkeypatch, tmp_path, missing):
    with open(tmp_path / "closed", "w") as closed:
        pass
    monkeypatch.setattr("sys.stdout", None if missing else closed)
    with one_sentence():
        pass


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        (lambda: None, 141, ""),
        (lambda: print("more", flush=True), 141, ""),
        (lambda: sys.exit(0), 141, ""),  # --help
        (lambda: sys.exit(2), 2, ""),
        (lambda: (_ for _ in ()).throw(ConfigError("wrong")), 1, "error: wrong\n"),
    ],
)
def test_a_command_whose_reader_has_gone_ends_without_a_word_of_that(capsys, monkeypatch, ends, status, said):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:  # nothing is left in it that closing it would fail to write
        monkeypatch.setattr(sys, "stdout", pipe)
        print("a line")
        with pytest.raises(SystemExit) as stop, one_sentence():
            ends()
    assert (stop.value.code, capsys.readouterr().err) == (status, said)


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), one_sentence():
        raise ZeroDivisionError
