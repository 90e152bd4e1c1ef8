"""``czsl doctor``: what is wrong with this machine or cluster, and what to do."""

from __future__ import annotations

import sys

import click

from czsl_cli.console import coloured, print_json, print_table, say

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--cluster", "on_cluster", is_flag=True, help="Look at every node of a cluster.")
@click.option("--address", help="The cluster.  [default: RAY_ADDRESS, else the one this machine is part of]")
@click.option("--clip", default="tiny", show_default=True, metavar="NAME|FILE", help="CLIP whose weights should be there.")
@click.option("--clip-weights", metavar="TAG|FILE", help="Its weights, as for `czsl train`.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor(on_cluster, address, clip, clip_weights, as_json) -> None:
    """Check versions, GPU, FAISS, CLIP weights, disk, memory, network and Ray's token, and say what to do about each finding.

    Exits with 0 if nothing fails, with 4 if something does; a warning is no failure.
    """
    from dataclasses import asdict

    from cluster.machines import health

    if on_cluster or address:
        from cluster.machines.daemons import address_of

        findings = health.examine_cluster(address_of(address), clip, clip_weights)
    else:
        findings = health.examine(clip, clip_weights)
    failed = [f for f in findings if f.level == "fail"]
    if as_json:
        print_json({"ok": not failed, "findings": [asdict(f) for f in findings]})
    else:
        nodes = any(f.node for f in findings)
        columns = ["", *["node"] * nodes, "what", "found", "what to do"]
        print_table(columns, [[f.level, *[f.node] * nodes, f.subject, f.found, f.fix] for f in findings])
        warned = sum(f.level == "warn" for f in findings)
        level = "fail" if failed else "warn" if warned else "ok"
        say(coloured(f"{len(failed)} failures, {warned} warnings, {len(findings) - len(failed) - warned} fine", COLOURS[level]))
    if failed:
        sys.exit(4)
