"""From a folder of CTs to a folder of masks: stock nnU-Net against this project, same weights."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pancreas_mtl.benchmarks.inputs import LARGEST, Size, windows, write_cases
from pancreas_mtl.benchmarks.pairs import Answer, Rounds, Row, in_turn, row, write_result
from pancreas_mtl.benchmarks.side import Side
from pancreas_mtl.data.files import write_json
from pancreas_mtl.data.images import read_mask
from pancreas_mtl.data.plan import load_plan
from pancreas_mtl.inference.engines import Precision
from pancreas_mtl.metrics.segmentation import dsc
from pancreas_mtl.provenance import ROOT, code_state
from pancreas_mtl.types import Plan

PRESETS = ("accurate", "fast", "single")
SAME_DSC = 0.995  # of two masks that count as the same


@dataclass(frozen=True)
class Sides:
    """How the two are started, where they work, and on which device."""

    nnunet_python: str
    work: Path
    device: str = "cpu"

    def stock(self, log: str = "nnunet.log") -> Side:
        """Stock nnU-Net."""
        return Side(
            "nnU-Net",
            [self.nnunet_python, "-m", "pancreas_mtl.benchmarks.nnunet_side"],
            self.work / log,
            device=self.device,
            environment={"PYTHONPATH": str(ROOT)},
        )

    def ours(self, name: str = "ours") -> Side:
        """This project, which finds no compiled model from before."""
        cache = self.work / f"cache_{name}"
        shutil.rmtree(cache, ignore_errors=True)
        return Side(
            name,
            [sys.executable, "-m", "pancreas_mtl.benchmarks.our_side"],
            self.work / f"{name}.log",
            device=self.device,
            environment={"XDG_CACHE_HOME": str(cache)},
        )


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
            return f"{self.folder}, fold {self.fold}, {self.checkpoint}"
        if self.minutes:
            return f"trained for {self.minutes:g} minutes on the cases themselves"
        return "random: the masks are noise and DSC says little"


@dataclass(frozen=True)
class Ours:
    """How ours predicts."""

    engine: str
    precision: Precision = "auto"


def benchmark_inference(
    sides: Sides,
    model: Model,
    plan: Plan,
    sizes: Sequence[Size],
    *,
    how: Ours,
    pairs: int,
    largest: bool,
) -> str:
    """Time the folder of cases with every preset, compare the masks, write `inference.json`.

    After an interruption, it goes on with the model and the rounds that it had.

    Args:
        sides: both programs.
        model: whose weights they share.
        plan: of a model that is made.
        sizes: of the cases.
        how: ours predicts.
        pairs: rounds after the first one, in which a single case is predicted for the cold start.
        largest: also predict the quiz's largest case once, in one pass, for the memory.
    """
    work = sides.work
    names = write_cases(work / "cases", sizes, small=not largest)
    write_cases(work / "first", sizes[:1], small=not largest)
    settings = [str(model), asdict(plan), sizes, sides.device, asdict(how), code_state().label]
    if model.folder is None:
        _make(sides, model, plan, sizes)
    with ExitStack() as stack:
        stock = stack.enter_context(sides.stock())
        ours = {name: stack.enter_context(sides.ours(name)) for name in PRESETS}
        everyone = {"stock": stock, **ours}
        loads = _load(work, model, everyone, how)
        about = {name: _about(side) for name, side in everyone.items()}
        rounds = Rounds(work / "inference-rounds.json", [*settings, about])
        one, asked = (_predicting_all(everyone, work / part) for part in ("first", "cases"))
        first, warm = in_turn(asked, pairs=pairs, warm_up=one, rounds=rounds)
        limit = ours["single"].ask("limit")
        largest_rows = _largest_case(work, stock, ours["accurate"]) if largest else []
    facts = {
        "weights": str(model),
        "windows": [windows(size, load_plan(work / "bundle" / "plan.json")) for size in sizes],
        "device": sides.device,
        "ours": {"engine": how.engine, "precision": loads["accurate"]["precision"]},
        "about": about,
        "limit_gflop_per_s": limit["gflop_per_s"],
        "lowest_dsc": (agreement := _agreement(names, work / "cases")),
        "same_masks": agreement["accurate"] >= SAME_DSC,
    }
    starts = {name: side.start_s + loads[name]["seconds"] for name, side in everyone.items()}
    cold = {name: starts[name] + first[name]["seconds"] for name in everyone}
    answers = {"load": loads, "cold_s": cold, "first": first, "warm": warm, "limit": limit}
    rows = [one for preset in PRESETS for one in _rows(preset, answers, facts)]
    text = write_result(work / "inference.json", rows + largest_rows, facts, answers)
    rounds.forget()
    return text


def _make(sides: Sides, model: Model, plan: Plan, sizes: Sequence[Size]) -> None:
    """Let nnU-Net make the model that both run, in a process of its own, unless it is there."""
    made, folder = sides.work / "made.json", sides.work / "model"
    wanted = json.loads(json.dumps([str(model), asdict(plan), sizes]))
    if made.exists() and json.loads(made.read_text(encoding="utf-8")) == wanted:
        return
    made.unlink(missing_ok=True)
    with sides.stock("nnunet-training.log") as maker:
        maker.ask(
            "make_model",
            folder=str(folder),
            plan=asdict(plan),
            cases=str(sides.work / "cases"),
            patch_size=[n // 2 for n in plan.patch_size],
            minutes=model.minutes,
        )
    write_json(made, wanted)


def _about(side: Side) -> Answer:
    """Versions and threads of a side."""
    answer = side.ask("about")
    return {key: answer[key] for key in ("versions", "threads")}


def _load(work: Path, model: Model, sides: dict[str, Side], how: Ours) -> dict[str, Answer]:
    """Load the rival's model, and its weights as a bundle."""
    folder = model.folder or work / "model"
    origin = {"folder": str(folder), "fold": model.fold, "checkpoint": model.checkpoint}
    bundle = str(work / "bundle")
    sides["accurate"].ask("import_model", **origin, bundle=bundle)
    return {
        "stock": sides["stock"].ask("load", **origin),
        **{
            name: sides[name].ask("load", preset=name, bundle=bundle, **asdict(how))
            for name in PRESETS
        },
    }


def _predicting_all(sides: Mapping[str, Side], folder: Path) -> dict[str, Any]:
    return {name: _predicting(s, folder / "images", folder / name) for name, s in sides.items()}


def _predicting(side: Side, inputs: Path, output_dir: Path, *, mirror: bool = True) -> Any:
    folders = {"inputs": str(inputs), "output_dir": str(output_dir)}
    return lambda: side.ask("predict", **folders, mirror=mirror)


def _rows(preset: str, answers: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Row]:
    """Warm and cold seconds for the folder, the network's share of the limit, peak memory."""
    stock, ours = answers["warm"]["stock"], answers["warm"][preset]
    cold, limit = answers["cold_s"], answers["limit"]
    shares = [
        one["voxels"] * limit["gflop_per_vox"] / limit["gflop_per_s"] / one["stages"]["passes"]
        for one in ours
    ]
    stages = {key: value for key, value in ours[-1]["stages"].items() if key != "passes"}
    text = ", ".join(f"{key} {value:.2g}" for key, value in stages.items())
    lowest = facts["lowest_dsc"][preset]
    return [
        row(
            f"`{preset}`, all cases",
            [one["seconds"] for one in stock],
            [one["seconds"] for one in ours],
            note=f"ours by {' in '.join(facts['ours'].values())}; DSC of the masks >= {lowest:.4f}",
        ),
        row(f"`{preset}`, one case, with start and loading", [cold["stock"]], [cold[preset]]),
        row(
            f"`{preset}`, network",
            [one["stages"]["network"] for one in stock],
            [one["stages"]["network"] for one in ours],
            note=f"{np.median(shares):.0%} of the limit; our stages: {text} s",
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
