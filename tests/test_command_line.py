"""Every command ends a wrong command line in one line, with what may be said instead."""

import pytest

from timm_ebl import benchmark, gradients, hub, overhead, plots

COMMANDS = {
    benchmark.main: ["--nonsense"],
    gradients.main: ["--nonsense"],
    overhead.main: ["--nonsense"],
    plots.main: ["run", "--nonsense"],
    hub.main: ["verify", "name", "--nonsense"],
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__module__)
def test_an_unknown_option_is_refused_in_one_line_that_lists_the_known_ones(command, capsys):
    with pytest.raises(SystemExit) as refusal:
        command(COMMANDS[command])
    message = capsys.readouterr().err
    assert refusal.value.code == 2
    assert "--nonsense" in message
    assert "--help" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("command", [benchmark.main, gradients.main, overhead.main])
@pytest.mark.parametrize(("threads", "words"), [("0", "at least 1"), ("5000", "--threads is at most")])
def test_threads_that_cannot_be_are_refused_by_every_command(command, threads, words, capsys):
    with pytest.raises(SystemExit):
        command(["--threads", threads])
    assert words in capsys.readouterr().err
