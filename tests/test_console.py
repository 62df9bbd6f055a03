"""A run goes on where nobody reads what it says."""

import io
import os
import sys

import datasets
import huggingface_hub
import pytest
from runs import train_ebl
from tqdm import tqdm

from timm_ebl.hub import __main__ as hub
from timm_ebl.tools import benchmark, gradients, plots, predict
from timm_ebl.training.console import OptionalStream, bars_in_terminals_alone, survive_output


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_stops_no_print_and_no_progress_bar():
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115 (it cannot be closed without an error)
    stream = OptionalStream(full)
    for text in ("a line", "x" * 100_000):
        print(text, file=stream, flush=True)
    assert sum(tqdm(range(3), file=stream, mininterval=0)) == 3
    with pytest.raises(OSError, match="space"):
        full.close()


def test_a_closed_stream_stops_no_print():
    with open(os.devnull, "w") as file:
        stream = OptionalStream(file)
    print("a line", file=stream, flush=True)
    with pytest.raises(ValueError, match="closed"):
        print("a line", file=file)


def test_a_pipe_without_a_reader_stops_no_print():
    reading, writing = os.pipe()
    os.close(reading)
    file = os.fdopen(writing, "w")
    print("a line", file=OptionalStream(file), flush=True)
    with pytest.raises(BrokenPipeError):
        file.close()


def test_letters_that_cannot_be_encoded_are_written_as_numbers():
    raw = io.BytesIO()
    stream = OptionalStream(io.TextIOWrapper(raw, encoding="ascii"))
    print("Löwe", file=stream, flush=True)
    assert raw.getvalue() == b"L\\xf6we\n"


def test_a_missing_standard_output_is_replaced(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    survive_output()
    print("a line", flush=True)
    assert not sys.stdout.isatty()
    sys.stdout.close()


def bars_are_off():
    return datasets.are_progress_bars_disabled() and huggingface_hub.utils.are_progress_bars_disabled()


@pytest.fixture
def bars():
    """Bars are on, as libraries have them."""
    datasets.enable_progress_bars()
    huggingface_hub.utils.enable_progress_bars()
    assert not bars_are_off()


@pytest.mark.parametrize("command", [benchmark, gradients, hub, plots, predict])
@pytest.mark.usefixtures("bars")
def test_in_a_log_libraries_show_no_bars_of_their_own(command):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    assert bars_are_off()


@pytest.mark.usefixtures("bars")
def test_in_a_runs_log_libraries_show_no_bars_before_it_looks_for_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_ebl.py", "--pretrained", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        train_ebl.main()
    assert bars_are_off()


@pytest.mark.usefixtures("bars")
def test_in_a_terminal_the_first_process_alone_shows_bars(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bars_in_terminals_alone()
    assert not bars_are_off()
    monkeypatch.setenv("LOCAL_RANK", "1")
    bars_in_terminals_alone()
    assert bars_are_off()
