"""A step of training with equal network, patch and batch; time and memory against the cases."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict

from pancreas_mtl.benchmarks.inference import Sides, gpu_memory
from pancreas_mtl.benchmarks.pairs import in_turn, row, write_result
from pancreas_mtl.types import Plan


def benchmark_train(
    sides: Sides, plan: Plan, *, pairs: int, cases: Sequence[int], batches: int
) -> str:
    """Time steps of both in turn, and our loader on so many cases, write `train.json`."""
    with ExitStack() as stack:
        stock = stack.enter_context(sides.stock())
        ours = stack.enter_context(sides.ours())
        stock.ask("open_step", plan=asdict(plan))
        precision = ours.ask("open_step", plan=asdict(plan))["precision"]
        asked = {"stock": lambda: stock.ask("step"), "ours": lambda: ours.ask("step")}
        first, steps = in_turn(asked, pairs=pairs)
        loading = {count: ours.ask("loading", cases=count, batches=batches) for count in cases}
    seconds = {key: [one["seconds"] for one in steps[key]] for key in steps}
    peaks = {key: [max(one["peak_mb"] for one in steps[key])] for key in steps}
    rows = [
        row("a step of training", seconds["stock"], seconds["ours"], note=f"ours in {precision}"),
        row("its peak memory", peaks["stock"], peaks["ours"], unit="MB"),
        *gpu_memory("a step of training", steps["stock"], steps["ours"]),
    ]
    text = write_result(
        sides.work / "train.json", rows, {}, {"first": first, "steps": steps, "loading": loading}
    )
    lines = [
        f"loading, {count} cases: {1e3 * one['read_s'] / (2 * batches):.2f} ms a patch, "
        f"{one['held_mb']:.1f} MB more held at the end"
        for count, one in loading.items()
    ]
    return "\n".join([text, *lines])
