"""``czsl doctor``: what is wrong with this machine or cluster, and what to do."""

from __future__ import annotations

import os
import sys

import click

from czsl_cli.console import coloured, print_json, print_table, say

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--cluster", "on_cluster", is_flag=True, help="Look at every node of a cluster.")
@click.option("--address", help="The cluster.  [default: RAY_ADDRESS, else the one this machine is part of]")
@click.option("--clip", default="tiny", show_default=True, metavar="NAME|FILE", help="CLIP whose weights should be there.")
@click.option("--clip-weights", metavar="TAG|FILE", help="Its weights, as for `czsl train`.")
@click.option(
    "--bench", is_flag=True, help="Compare the GPU with the CPU and measure it: a few minutes, without Ray and network."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor(on_cluster, address, clip, clip_weights, bench, as_json) -> None:
    """Check versions, GPU, FAISS, CLIP weights, disk, memory, network and Ray's token, and say what to do about each finding.

    Exits with 0 if nothing fails, with 4 if something does; a warning is not a failure.
    """
    if bench:
        if on_cluster or address:
            raise click.UsageError("--bench is for this machine: leave out --cluster and --address")
        _bench(as_json)
        return
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


def _bench(as_json: bool) -> None:
    """Run the checks of the GPU, then the measurements; SetupError without a GPU."""
    from dataclasses import asdict

    import torch

    from czsl.errors import SetupError
    from czsl.gpus import find, own_device

    device = own_device()
    if device.type == "cpu":
        if (gpus := find()).what:
            raise SetupError("--bench needs a GPU, and the CPU would be used", f"{gpus.what}: {gpus.why}", gpus.fix)
        build = f"this torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "this torch is a build for CPUs"
        raise SetupError(
            "this machine has no GPU",
            f"{build}, and it finds no usable GPU (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})",
            "run it on a machine with a GPU; if this one has a GPU: czsl doctor lists what is missing",
        )
    from cluster.work.device_bench import bench
    from cluster.work.device_checks import checks

    found, rows = [], []
    for check in checks(device):
        found.append(check)
        say(f"{check.level}: {check.subject}: {check.found}" + (f" -> {check.fix}" if check.fix else ""))
    for row in bench(device):
        rows.append(row)
        say(f"{row.work}: {row.error or f'{row.images_per_s} images/s'}")
    failed = [c for c in found if c.level == "fail"]
    card = torch.cuda.get_device_name(device)
    if as_json:
        facts = {"ok": not failed, "device": card, "torch": torch.__version__}
        print_json({**facts, "checks": [asdict(c) for c in found], "measured": [asdict(r) for r in rows]})
    else:
        print_table(["", "what", "found", "what to do"], [[c.level, c.subject, c.found, c.fix] for c in found])
        columns = ["ViT-L/14, random weights", "images", "images/s", "of the peak", "launches", "waits", "copies", "GPU MiB", ""]
        print_table(columns, [_measured(r) for r in rows])
        say(f"{card}: {len(failed)} failures")
    if failed:
        sys.exit(4)


def _measured(row) -> list:
    share = None if row.share_of_peak is None else f"{100 * row.share_of_peak:.0f} %"
    memory = None if row.gpu_bytes is None else f"{row.gpu_bytes / 2**20:,.0f}"
    return [row.work, row.images, row.images_per_s, share, row.launches, row.waits, row.copies, memory, row.error]
