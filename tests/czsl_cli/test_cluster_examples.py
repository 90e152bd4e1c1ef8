"""The example files for clusters: what validates them offline, and that they call commands which exist."""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import cast

import click
import pytest
import yaml

from czsl_cli.main import cli

FOLDER = Path(__file__).parents[2] / "examples" / "launchers"
FILES = sorted(p for p in FOLDER.iterdir() if p.is_file())


def commands_in(text: str) -> list[list[str]]:
    """Every czsl command line; variables of the shell stand for a number."""
    text = re.sub(r"\\?\$(\{[^}]*\}|\w+)", "4", text.replace("\\\n", " "))
    found = re.findall(r"\bczsl ((?:train|cluster|doctor|evaluate|tune)\b[^\n`'|&;()]*)", text)
    return [["czsl", *shlex.split(line)] for line in found]


def parse(words: list[str]) -> click.Context:
    """Parse a command line to its end without running it."""
    words, command = words[1:], cast(click.Command, cli)
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(cli), words[0])
        assert found is not None, words
        command, words = found, words[1:]
    return command.make_context(command.name, words)


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.name)
def test_commands_in_the_files_have_the_options_they_use(file):
    text = file.read_text(encoding="utf-8")
    if "entrypoint: >-" in text:  # folded over several lines
        text = text.split("spec:\n")[0] + yaml.safe_load(text)["spec"]["entrypoint"]
    found = commands_in(text)
    assert found, file.name
    for words in found:
        parse(words)


def test_a_wrong_option_would_be_noticed():
    with pytest.raises(click.UsageError):
        parse(["czsl", "train", "--no-such-option"])


def test_ray_up_fits_rays_schema():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / "ray-up.yaml").read_text(encoding="utf-8"))
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["max_workers"] == len(config["provider"]["worker_ips"])
    started = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in started if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in " ".join(started)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_slurm_script_parses():
    done = subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_kuberay_job_has_the_fields_that_kuberay_reads():
    job = yaml.safe_load((FOLDER / "kuberay-rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= {
        "entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec", "submitterPodTemplate",
    }  # fmt: skip
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert set(cluster) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    for group in groups:
        assert set(group) <= {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())  # KubeRay takes strings only
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        variables = {e["name"]: e for e in container["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in variables["RAY_AUTH_TOKEN"]["valueFrom"]  # never in the file itself
    workers = cluster["workerGroupSpecs"][0]
    asked = parse(["czsl", *shlex.split(job["spec"]["entrypoint"])[1:]]).params["nodes"]
    assert asked == (workers["minReplicas"], workers["maxReplicas"])


def test_the_ray_version_is_one_that_czsl_takes():
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    ray = next(r for r in map(Requirement, project["project"]["dependencies"]) if r.name == "ray")
    version = yaml.safe_load((FOLDER / "kuberay-rayjob.yaml").read_text(encoding="utf-8"))["spec"]["rayClusterSpec"]["rayVersion"]
    assert ray.specifier.contains(version)
