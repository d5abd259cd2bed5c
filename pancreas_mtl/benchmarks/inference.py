"""From a folder of CTs to a folder of masks: stock nnU-Net against this project, same weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pancreas_mtl.benchmarks.inputs import LARGEST, Size, windows, write_cases
from pancreas_mtl.benchmarks.pairs import Answer, Rounds, Row, in_turn, row, write_result
from pancreas_mtl.benchmarks.side import Side
from pancreas_mtl.data.images import read_mask
from pancreas_mtl.data.plan import load_plan
from pancreas_mtl.metrics.segmentation import dsc
from pancreas_mtl.types import Plan

HERE = Path(__file__).parent
PRESETS = ("accurate", "fast")
SAME_DSC = 0.995  # of two masks that count as the same


@dataclass(frozen=True)
class Sides:
    """How the two are started, where they work, and on which device."""

    nnunet_python: str
    work: Path
    device: str = "cpu"

    def stock(self) -> Side:
        """Stock nnU-Net."""
        script = str(HERE / "nnunet_side.py")
        log = self.work / "nnunet.log"
        return Side("nnU-Net", [self.nnunet_python, script], log, device=self.device)

    def ours(self, name: str = "ours") -> Side:
        """This project."""
        command = [sys.executable, "-m", "pancreas_mtl.benchmarks.our_side"]
        return Side(name, command, self.work / f"{name}.log", device=self.device)


@dataclass(frozen=True)
class Model:
    """An nnU-Net model that both run.

    Without a folder, nnU-Net makes one and trains it for so many minutes on the cases themselves,
    with patches of half the size, so that masks look like masks; 0 leaves the weights random.
    """

    folder: Path | None = None
    fold: int | str = 0
    checkpoint: str = "checkpoint_final.pth"
    minutes: float = 0.0

    def __str__(self) -> str:
        """Where the weights come from."""
        if self.folder:
            return str(self.folder)
        if self.minutes:
            return f"trained for {self.minutes:g} minutes on the cases themselves"
        return "random: the masks are noise and DSC says little"


def benchmark_inference(
    sides: Sides,
    model: Model,
    plan: Plan,
    sizes: Sequence[Size],
    *,
    engine: str,
    precision: str,
    pairs: int,
    largest: bool,
) -> str:
    """Time the folder of cases with both presets, compare the masks, write `inference.json`.

    After an interruption, it goes on with the model and the rounds that it had.

    Args:
        sides: both programs.
        model: whose weights they share.
        plan: of a model that is made.
        sizes: of the cases.
        engine: of ours.
        precision: of ours.
        pairs: rounds after the first one, in which a single case is predicted for the cold start.
        largest: also predict the quiz's largest case once, in one pass, for the memory.
    """
    work = sides.work
    names = write_cases(work / "cases", sizes, small=not largest)
    write_cases(work / "first", sizes[:1], small=not largest)
    settings = [str(model), asdict(plan), sizes, sides.device, engine, precision]
    rounds = Rounds(work / "inference-rounds.json", settings)
    with ExitStack() as stack:
        stock = stack.enter_context(sides.stock())
        ours = {name: stack.enter_context(sides.ours(name)) for name in PRESETS}
        everyone = {"stock": stock, **ours}
        if model.folder is None and not rounds.done:
            _make(stock, work, model, plan)
        loads = _load(work, model, everyone, engine=engine, precision=precision)
        one, asked = (
            {
                name: _predicting(side, work / part / "images", work / part / name)
                for name, side in everyone.items()
            }
            for part in ("first", "cases")
        )
        first, warm = in_turn(asked, pairs=pairs, warm_up=one, rounds=rounds)
        limit = ours["fast"].ask("limit")["gflop_per_s"]
        largest_rows = _largest_case(work, stock, ours["accurate"]) if largest else []
    agreement = _agreement(names, work / "cases")
    starts = {name: side.start_s + loads[name]["seconds"] for name, side in everyone.items()}
    cold = {name: starts[name] + first[name]["seconds"] for name in everyone}
    rows = [one for p in PRESETS for one in _rows(p, warm, cold, agreement[p], limit)]
    facts = {
        "weights": str(model),
        "windows": [windows(size, load_plan(work / "bundle" / "plan.json")) for size in sizes],
        "device": sides.device,
        "engine": engine,
        "precision": loads["accurate"]["precision"],
        "limit_gflop_per_s": limit,
        "lowest_dsc": agreement,
        "same_masks": agreement["accurate"] >= SAME_DSC,
    }
    answers = {"load": loads, "cold_s": cold, "first": first, "warm": warm}
    text = write_result(work / "inference.json", rows + largest_rows, facts, answers)
    rounds.forget()
    return text


def _make(stock: Side, work: Path, model: Model, plan: Plan) -> None:
    """Let nnU-Net make the model that both run."""
    half = [n // 2 for n in plan.patch_size]
    stock.ask(
        "make_model",
        folder=str(work / "model"),
        plan=asdict(plan),
        cases=str(work / "cases"),
        patch_size=half,
        minutes=model.minutes,
    )


def _load(
    work: Path, model: Model, sides: dict[str, Side], *, engine: str, precision: str
) -> dict[str, Answer]:
    """Load the rival's model, and its weights as a bundle."""
    folder = model.folder or work / "model"
    origin = {"folder": str(folder), "fold": model.fold, "checkpoint": model.checkpoint}
    bundle = str(work / "bundle")
    sides["accurate"].ask("import_model", **origin, bundle=bundle)
    settings = {"bundle": bundle, "engine": engine, "precision": precision}
    return {
        "stock": sides["stock"].ask("load", **origin),
        **{name: sides[name].ask("load", preset=name, **settings) for name in PRESETS},
    }


def _predicting(side: Side, inputs: Path, output_dir: Path, *, mirror: bool = True) -> Any:
    folders = {"inputs": str(inputs), "output_dir": str(output_dir)}
    return lambda: side.ask("predict", **folders, mirror=mirror)


def _rows(
    preset: str,
    warm: dict[str, list[Answer]],
    cold: dict[str, float],
    lowest_dsc: float,
    limit: float,
) -> list[Row]:
    """Warm and cold seconds for the folder, the network's share of the limit, peak memory."""
    stock, ours = warm["stock"], warm[preset]
    shares = [one["gflop"] / limit / one["stages"]["passes"] for one in ours]
    stages = {key: value for key, value in ours[-1]["stages"].items() if key != "passes"}
    text = ", ".join(f"{key} {value:.2g}" for key, value in stages.items())
    return [
        row(
            f"`{preset}`, all cases",
            [one["seconds"] for one in stock],
            [one["seconds"] for one in ours],
            note=f"DSC of the two masks >= {lowest_dsc:.4f}",
        ),
        row(f"`{preset}`, one case, with start and loading", [cold["stock"]], [cold[preset]]),
        row(
            f"`{preset}`, network",
            [one["stages"]["network"] for one in stock],
            [one["stages"]["network"] for one in ours],
            note=f"{max(shares):.0%} of the limit; our stages: {text} s",
        ),
        row(
            f"`{preset}`, peak memory",
            [max(one["peak_mb"] for one in stock)],
            [max(one["peak_mb"] for one in ours)],
            unit="MB",
        ),
        *gpu_memory(f"`{preset}`", stock, ours),
    ]


def gpu_memory(what: str, stock: Sequence[Answer], ours: Sequence[Answer]) -> list[Row]:
    """The most that tensors took on the GPU; nothing on the CPU."""
    peaks = [[one["gpu_mb"] for one in side if "gpu_mb" in one] for side in (stock, ours)]
    if not all(peaks):
        return []
    what = f"{what}, peak GPU memory of tensors"
    return [row(what, [max(peaks[0])], [max(peaks[1])], unit="MB")]


def _largest_case(work: Path, stock: Side, ours: Side) -> list[Row]:
    """Peak memory of both over the quiz's largest case; mirroring would add time alone."""
    write_cases(work / "largest", [LARGEST])
    images = work / "largest" / "images"
    peaks = [
        _predicting(side, images, work / "largest" / side.name, mirror=False)()["peak_mb"]
        for side in (stock, ours)
    ]
    size = " x ".join(map(str, LARGEST[0]))
    return [row(f"peak memory, {size} voxels", peaks[:1], peaks[1:], unit="MB")]


def _agreement(names: Sequence[str], folder: Path) -> dict[str, float]:
    """Per preset, the lowest DSC with stock nnU-Net's masks over cases and regions.

    Two empty masks agree.
    """
    lowest = dict.fromkeys(PRESETS, 1.0)
    for name in names:
        stock = read_mask(folder / "stock" / f"{name}.nii.gz").array
        for preset in PRESETS:
            ours = read_mask(folder / preset / f"{name}.nii.gz").array
            for least in (1, 2):
                if (stock >= least).any() or (ours >= least).any():
                    same = float(dsc(stock >= least, ours >= least))
                    lowest[preset] = min(lowest[preset], same)
    return lowest
