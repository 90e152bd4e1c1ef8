"""``czsl cluster``: a Ray cluster of machines reached by hand."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from czsl_cli.console import print_json, print_lines, print_table, print_text, say, warn

as_json = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")


@click.group()
def cluster() -> None:
    """Start, show and end a Ray cluster on machines you can log in to.

    \b
      czsl cluster up                             on the head; it prints what the other machines run
      czsl cluster up --join 10.0.0.1:6379        on each other machine
      czsl train --nodes 2 --address 10.0.0.1:6379 --data /shared/mydata --out /shared/runs
      czsl cluster down                           on each machine
    """


@cluster.command()
@click.option("--join", metavar="HEAD:PORT", help="Join this head instead of starting one.")
@click.option("--host", metavar="ADDRESS", help="Address of this machine by which the others reach it.  [default: found out]")
@click.option("--port", type=click.IntRange(1, 65535), default=6379, show_default=True, help="Port of the head.")
@click.option(
    "--dashboard-port",
    type=click.IntRange(1, 65535),
    default=8265,
    show_default=True,
    help="Dashboard port of the head, on 127.0.0.1 only.",
)
@click.option("--cpus", type=click.IntRange(0), help="CPUs to offer.  [default: all]")
@click.option("--gpus", type=click.IntRange(0), help="GPUs to offer.  [default: all]")
@as_json
def up(join, host, port, dashboard_port, cpus, gpus, as_json) -> None:
    """Start a Ray head here, or join one.

    Token authentication is on: the head makes a token (~/.ray/auth_token), the other machines need a copy of the file.
    """
    from dataclasses import asdict

    from cluster.machines import daemons
    from cluster.machines.session import token_file

    if join and ":" not in join:
        raise click.UsageError(f"--join {join}: give the head's address and port, e.g. 10.0.0.1:6379")
    if note := daemons.ensure_token(create=join is None):
        say(note)
    state = daemons.up(join=join, host=host, port=port, dashboard_port=dashboard_port, cpus=cpus, gpus=gpus)
    if state.host.startswith("127."):
        warn("this machine is known as 127.0.0.1: others cannot join; give its address with --host")
    if state.role == "head":
        token = token_file()
        say(f"a Ray head runs at {state.address}, its dashboard at http://{state.dashboard} (this machine only)")
        say("on every other machine, with the same czsl:")
        say(f"  scp {state.host}:{token} ~/.ray/auth_token && chmod 600 ~/.ray/auth_token")
        say(f"  czsl cluster up --join {state.address}")
        say(f"then, on any of them: czsl train --address {state.address} --nodes N --data /shared/... --out /shared/runs")
    else:
        say(f"this machine ({state.host}) is part of {state.address}; czsl cluster status lists all")
    if as_json:
        print_json(asdict(state))
    else:
        print_text(state.address)


@cluster.command()
@click.option("--address", help="Cluster to describe.  [default: RAY_ADDRESS, else the one this machine is part of]")
@as_json
def status(address, as_json) -> None:
    """List the nodes, what they offer and which versions they have."""
    from cluster.machines import daemons

    found = daemons.status(address)
    if as_json:
        print_json(found)
        return
    columns = ["node", "host", "address", "state", "CPUs free", "GPUs free", "czsl", "torch", "ray", "python"]
    rows = []
    for n in found["nodes"]:
        free = [f"{n[f'free_{kind}']:g}/{n[kind]:g}" for kind in ("cpus", "gpus")]
        state = n["state"] + (", head" if n["head"] else "")
        rows.append(
            [
                n["node"],
                n["host"],
                n["address"],
                state,
                *free,
                *(n["versions"].get(k, "") for k in ("czsl", "torch", "ray", "python")),
            ]
        )
    print_table(columns, rows, found["address"])
    for n in found["nodes"]:
        if n["state"] == "silent":
            warn(f"{n['host']} ({n['address']}): {n['why']}")


@cluster.command()
@as_json
def down(as_json) -> None:
    """End what `czsl cluster up` started on this machine, and nothing else."""
    from cluster.machines import daemons

    state = daemons.read_state()
    ended = daemons.down()
    if state is None:
        say(f"nothing to end: no {daemons.state_file()}")
    else:
        say(f"ended the Ray {state.role} of {state.address}: {len(ended)} processes")
    if as_json:
        print_json(ended)


@cluster.command(context_settings={"ignore_unknown_options": True})
@click.option("--dashboard", default="127.0.0.1:8265", show_default=True, metavar="HOST:PORT", help="The head's job server.")
@click.option("--folder", type=click.Path(path_type=Path), help="Folder of the head to run in.  [default: this one]")
@click.option("--no-wait", is_flag=True, help="Print the job's id and leave.")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def submit(dashboard, folder, no_wait, words) -> None:
    """Run a czsl command on the cluster's head, which keeps running it after you log out.

    Needs the extra czsl[cluster], here and on the head.

    \b
      czsl cluster submit -- train --method clusPro --nodes 4 --data /shared/mydata --out /shared/runs
    """
    from czsl_cli.main import COMMANDS

    if words[0] not in COMMANDS:
        raise click.UsageError(f"no command {words[0]!r}; write: czsl cluster submit -- train ...")
    from cluster.machines import submit as jobs_module

    jobs = jobs_module.client(dashboard)
    job = jobs_module.submit(jobs, list(words), folder or Path.cwd())
    say(f"job {job}: czsl {shlex.join(words)}")
    if no_wait:
        print_text(job)
        return
    try:
        code = jobs_module.follow(jobs, job, lambda text: print_lines(click.unstyle(text), end=""))
    except KeyboardInterrupt:
        say(f"the job keeps running: ray job logs {job} --follow; ray job stop {job}")
        raise
    sys.exit(code)
