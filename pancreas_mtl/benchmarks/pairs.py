"""A B A B ...: what is compared runs in turn, so that a busy machine slows all of it alike."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from pancreas_mtl.data.files import write_json, write_text

Answer = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of a table: medians of both, and the ratio pair by pair with its extremes."""

    what: str
    stock: float
    ours: float
    unit: str
    ratio: float
    ratio_low: float
    ratio_high: float
    pairs: int
    note: str = ""

    def cells(self) -> list[str]:
        """As text; a single pair has no extremes."""
        spread = f" ({self.ratio_low:.1f} to {self.ratio_high:.1f})" if self.pairs > 1 else ""
        values = [f"{value:.3g} {self.unit}" for value in (self.stock, self.ours)]
        return [self.what, *values, f"{self.ratio:.1f}{spread}", self.note]


class Rounds:
    """The rounds that are done; in a file as well, so that an interrupted benchmark goes on.

    Args:
        path: of the file, None for none; rounds in it that had other settings are forgotten.
        settings: all that the timings depend on, as JSON; the processor is added.
    """

    def __init__(self, path: Path | None = None, settings: Any = None) -> None:
        self._path = path
        self._settings = json.loads(json.dumps([settings, cpu_name()]))
        self.done: list[dict[str, Answer]] = []
        if path and path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.done = kept["rounds"] if kept["settings"] == self._settings else []

    def add(self, one: dict[str, Answer]) -> None:
        """Keep a round."""
        self.done.append(one)
        if self._path:
            write_json(self._path, {"settings": self._settings, "rounds": self.done})

    def forget(self) -> None:
        """What the file holds, when the result is written: the next benchmark begins anew."""
        if self._path:
            self._path.unlink(missing_ok=True)


def in_turn(
    asked: Mapping[str, Callable[[], Answer]],
    *,
    pairs: int,
    warm_up: Mapping[str, Callable[[], Answer]] | None = None,
    rounds: Rounds | None = None,
) -> tuple[dict[str, Answer], dict[str, list[Answer]]]:
    """The first answer of each, which warms it up, then those of so many rounds.

    Prints the seconds of every answer as it comes, since all of them can take hours.
    """
    first = {name: _announced("warm-up", name, ask) for name, ask in (warm_up or asked).items()}
    rounds = rounds or Rounds()
    for number in range(len(rounds.done) + 1, pairs + 1):
        turn = {name: _announced(f"{number}/{pairs}", name, ask) for name, ask in asked.items()}
        rounds.add(turn)
    return first, {name: [one[name] for one in rounds.done[:pairs]] for name in asked}


def _announced(what: str, name: str, ask: Callable[[], Answer]) -> Answer:
    answer = ask()
    print(f"{what} {name}: {answer['seconds']:.2f} s", flush=True)
    return answer


def row(
    what: str,
    stock: Sequence[float],
    ours: Sequence[float],
    *,
    unit: str = "s",
    more_is_better: bool = False,
    note: str = "",
) -> Row:
    """Compare value by value; a ratio above 1 means that ours is better."""
    a, b = np.asarray(stock, float), np.asarray(ours, float)
    ratios = b / a if more_is_better else a / b
    return Row(
        what,
        float(np.median(a)),
        float(np.median(b)),
        unit,
        float(np.median(ratios)),
        float(ratios.min()),
        float(ratios.max()),
        len(a),
        note,
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [["", "stock nnU-Net", "pancreas_mtl", "times better", ""], ["---"] * 5]
    lines += [one.cells() for one in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_result(
    path: Path, rows: Sequence[Row], facts: Mapping[str, Any], answers: Mapping[str, Any]
) -> str:
    """Write everything as JSON and the table beside it; return the table."""
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count(),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    content = {
        "machine": machine,
        **facts,
        "rows": [asdict(one) for one in rows],
        "answers": answers,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
    text = table(rows)
    write_text(path.with_suffix(".md"), text + "\n")
    return text


def cpu_name() -> str:
    """The processor, and what of its arithmetic decides the speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = facts.get("flags", "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{facts.get('model name', platform.processor())}, {' '.join(known)}"
