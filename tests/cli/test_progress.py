import io

import pytest
from rich.console import Console

from advrepair.cli.progress import LogProgress, TerminalProgress
from advrepair.cli.progress import progress as follow


class Clock:
    """Time that passes when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def _log():
    clock, stream = Clock(), io.StringIO()
    return LogProgress(stream, clock), clock, stream


def test_log_progress():
    progress, clock, stream = _log()
    with progress:
        progress("attack", 0, 50)
        for done in range(1, 51):
            clock.now += 0.2
            progress("attack", done, 50)
        progress("attack", 50, 50)
        progress("bounds", 0, 0)
        clock.now += 4
        progress("bounds", 3, 0)
        clock.now += 1
        progress("training", 0, 2)
        clock.now += 100
    assert stream.getvalue().splitlines() == [
        "attack  15/50  eta 7.0 s",
        "attack  30/50  eta 4.0 s",
        "attack  45/50  eta 1.0 s",
        "attack  50/50  10 s",
        "bounds  3",
        "bounds  3  5.0 s",
        "training  0/2  1 min 40 s",
    ]


def test_a_stage_may_come_again():
    progress, _, stream = _log()
    with progress:
        for done in (0, 1, 2, 0, 2):
            progress("training", done, 2)
    assert stream.getvalue().splitlines() == ["training  2/2  0.0 s"] * 2


def test_a_failed_stage_is_not_called_finished():
    progress, _, stream = _log()
    with pytest.raises(KeyError), progress:
        progress("attack", 1, 2)
        raise KeyError
    assert stream.getvalue() == ""


def test_terminal_progress_leaves_a_line_a_stage():
    stream, clock = io.StringIO(), Clock()
    screen = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with TerminalProgress(screen, clock) as progress:
        for done in range(3):
            progress("[attack]", done, 2)
            clock.now += 1
        progress("bounds", 1, 0)
        clock.now += 2
    text = stream.getvalue()
    assert "[attack]  2/2  2.0 s" in text
    assert "bounds  1  2.0 s" in text


def test_the_progress_that_fits(capsys):
    assert isinstance(follow(), LogProgress)
    with follow(silent=True) as progress:
        progress("attack", 1, 1)
    assert capsys.readouterr().err == ""
