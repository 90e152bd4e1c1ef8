"""Handing a command to a running cluster, which keeps running it after the caller has left. Needs the extra ``czsl[cluster]``."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.machines.session import prepare_environment
from czsl.errors import SetupError

POLL_S = 2.0
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


def client(dashboard: str) -> Any:
    """Ray's client for jobs.

    Raises
    ------
    SetupError
        The extra is not installed, here or on the head, or nothing answers.
    """
    missing = [name for name in ("aiohttp", "aiohttp_cors", "opencensus") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            "czsl cluster submit needs the extra czsl[cluster]",
            f"not installed: {', '.join(missing)}",
            "install it here and on the head, then restart the head: pip install 'czsl[cluster]'",
        )
    prepare_environment(joins=True)
    from ray.job_submission import JobSubmissionClient

    url = dashboard if "://" in dashboard else f"http://{dashboard}"
    try:
        return JobSubmissionClient(url)
    except Exception as error:  # Ray raises many kinds here
        raise SetupError(
            f"no job server at {url}",
            " ".join(str(error).split())[:200],
            "start the head with czsl[cluster] installed; from another machine: ssh -L 8265:127.0.0.1:8265 HEAD",
        ) from None


def submit(jobs: Any, words: list[str], folder: Path) -> str:
    """Start ``czsl WORDS`` on the head, in a folder of it; returns the job's id."""
    command = shlex.join([sys.executable, "-m", "czsl_cli.main", *words])
    return jobs.submit_job(entrypoint=f"cd {shlex.quote(str(folder))} && exec {command}")


def follow(jobs: Any, job: str, show: Callable[[str], None]) -> int:
    """Show a job's output until it ends; returns its exit code."""
    shown = 0
    while True:
        state = str(jobs.get_job_status(job).value)
        text = jobs.get_job_logs(job)
        show(text[shown:])
        shown = max(shown, len(text))
        if state in ENDED:
            code = getattr(jobs.get_job_info(job), "driver_exit_code", None)
            return 0 if state == "SUCCEEDED" else code or 1
        time.sleep(POLL_S)
