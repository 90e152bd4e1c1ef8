"""The entry point inside the test's own process: no start-up time, the same output and exit codes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest


@dataclass
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


@pytest.fixture
def czsl(capsys, tmp_path, monkeypatch):
    """Run ``czsl ...`` in an empty folder, or in ``cwd``; ``expect`` is the exit code."""
    from czsl_cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # the width of whoever runs the tests

    def run(*args, expect=0, cwd=None):
        if cwd is not None:
            monkeypatch.chdir(cwd)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in args])
        shown = Done(*capsys.readouterr())
        assert end.value.code == expect, shown.stdout + shown.stderr
        assert "Traceback" not in shown.stderr
        return shown

    return run
