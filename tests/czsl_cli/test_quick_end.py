"""The end of a command: exit handlers run, outputs are whole, and torch is not taken apart."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from czsl_cli import main as cli

SCRIPT = """
import atexit, sys
from czsl_cli import main as cli

{before}
def work(**_):
    atexit.register(print, "handler")
    print("x" * 100_000)
    sys.exit({code})

class Taken:
    def __del__(self):
        sys.stderr.write("taken apart")

sys.modules["kept for the end"] = Taken()
cli.cli.main = work
cli.main()
"""


def ended(code: int, before: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", SCRIPT.format(code=code, before=before)], capture_output=True, text=True)


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("torch", [True, False])
def test_outputs_are_whole_and_handlers_run(code, torch):
    done = ended(code, "sys.modules['torch'] = sys" if torch else "")
    assert done.returncode == code
    assert done.stdout == "x" * 100_000 + "\nhandler\n"
    assert ("taken apart" in done.stderr) == (not torch)


def test_a_thread_at_work_is_waited_for():
    thread = "import threading, time\nsys.modules['torch'] = sys\nthreading.Thread(target=lambda: (time.sleep(0.3), print('late'))).start()"
    assert "late" in ended(0, thread).stdout


def test_an_output_that_cannot_be_written_is_left_to_python(monkeypatch):
    ends = []
    monkeypatch.setattr(cli.atexit, "_run_exitfuncs", lambda: ends.append("handlers"))
    monkeypatch.setattr(cli.os, "_exit", lambda code: ends.append(code))
    monkeypatch.setitem(sys.modules, "torch", threading)
    monkeypatch.setattr(cli.threading, "enumerate", lambda: [threading.main_thread()])
    cli._end_quickly(5)
    assert ends == ["handlers", 5]

    class Full:
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    cli._end_quickly(5)
    assert ends == ["handlers", 5, "handlers"]
