"""Without a terminal a long command prints a line now and then, whatever it is at."""

from __future__ import annotations

import threading
import time

import click

from czsl_cli import console
from czsl_cli.console import FIRST_LINE_S, LAST_LINE_S, SignsOfLife, progress_bar, say
from czsl_cli.main import cli


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def silent_spans(hours, line=""):
    """The seconds between the lines of a command that says nothing by itself."""
    clock = Clock()
    life, before, spans = SignsOfLife(clock), clock.now, []
    life.working(line)
    while clock.now < 100 + 3600 * hours:
        clock.now += 1
        if life.due():
            life.heard()
            spans.append(clock.now - before)
            before = clock.now
    return spans


def test_the_first_line_comes_after_ten_seconds_and_no_silence_is_longer_than_a_minute():
    spans = silent_spans(2)
    assert spans[0] == FIRST_LINE_S == 10
    assert max(spans) <= LAST_LINE_S + 1 < 60
    assert spans == sorted(spans)
    assert len(spans) < 2 * 3600 / 40  # a long command does not fill its log


def test_a_command_that_speaks_is_not_interrupted():
    clock = Clock()
    life = SignsOfLife(clock)
    for _ in range(500):
        clock.now += 9
        life.heard()
        assert not life.due()
        clock.now += 0.5
        assert not life.due()


def test_the_line_is_of_the_newest_progress():
    clock = Clock()
    life = SignsOfLife(clock)
    clock.now += 75
    assert life.due() == "still working, 1:15 so far"
    life.working("scoring 3/9")
    assert life.due() == "scoring 3/9"
    life.working("")
    assert "still working" in life.due()


def test_every_command_has_it(czsl, monkeypatch):
    """A command of which the program knows nothing, silent and with a bar."""

    @click.command()
    def slow():
        time.sleep(3.2)
        with progress_bar() as bar:
            bar.update("weighing", 2, 7, "slowly")
            time.sleep(2.5)
        say("end")

    monkeypatch.setattr(console, "FIRST_LINE_S", 1.5)
    monkeypatch.setattr(cli, "get_command", lambda ctx, name: slow)
    lines = czsl("slow").stderr.splitlines()
    assert any(line.startswith("still working") for line in lines)
    assert "weighing 2/7  slowly" in lines
    assert lines[-1] == "end"
    time.sleep(1.2)
    assert not [t for t in threading.enumerate() if t.name == "signs of life"]
