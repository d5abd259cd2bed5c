"""An evaluation as tables on the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pancreas_mtl.evaluation.compare import Comparison
from pancreas_mtl.evaluation.results import Metrics, SubtypeMetrics
from pancreas_mtl.metrics.intervals import Estimate

WIDTH = 100
UNDEFINED = "-"
MAX_NAMED = 5  # cases that are listed by name
NAMES = {
    "whole_pancreas_dsc": "whole-pancreas DSC",
    "whole_pancreas_nsd": "whole-pancreas NSD",
    "lesion_dsc": "lesion DSC",
    "lesion_nsd": "lesion NSD",
    "macro_f1": "subtype macro-F1",
}
MET = {True: Text("met", "green"), False: Text("not met", "bold red"), None: Text("not measured")}


def render_table(metrics: Metrics, *, artefacts: Sequence[Path] = (), colour: bool = False) -> str:
    """Targets, regions, subtypes, groups of cases, what is missing, and where things are.

    Args:
        metrics: what was found.
        artefacts: paths to name at the end.
        colour: for a terminal; else plain ASCII text.
    """
    tables = [_targets(metrics), _regions(metrics), *_subtypes(metrics.subtype), _groups(metrics)]
    notes = [*_notes(metrics), *map(str, artefacts)]
    return _rendered(tables, notes, colour=colour)


def render_comparison(
    comparisons: Sequence[Comparison], other: Path, *, colour: bool = False
) -> str:
    """This run against another one, with the note on choosing the better one."""
    table = _table(
        "paired", "this", "other", "difference", "95% interval", "p", "p (Holm)", "cases"
    )
    for one in comparisons:
        table.add_row(
            NAMES[one.metric],
            _number(one.value),
            _number(one.other),
            f"{one.paired.difference:+.3f}",
            _interval(one.paired.ci95, sign="+"),
            f"{one.paired.p_value:.4f}",
            f"{one.p_corrected:.4f}",
            str(one.n_cases),
        )
    optimism = [
        f"{NAMES[one.metric]} {one.optimism:.3f}" for one in comparisons if one.optimism is not None
    ]
    notes = [f"other: {other}"]
    if optimism:
        notes.append(
            "Of two equally good runs, the one that looks better on these cases overstates itself "
            f"on average by: {', '.join(optimism)}"
        )
    return _rendered([table], notes, colour=colour)


def _targets(metrics: Metrics) -> Table:
    table = _table("target", "value", "95% interval", "goal", "")
    for target in metrics.targets:
        interval, goal = _interval(target.ci95), f">= {target.target:.2f}"
        table.add_row(NAMES[target.name], _number(target.value), interval, goal, MET[target.met])
    return table


def _regions(metrics: Metrics) -> Table:
    nsd = f"NSD at {metrics.lesion.nsd_tolerance_mm:g} mm"
    table = _table("region", "DSC", nsd, "HD95 mm", "ASSD mm", "volume error ml", "cases")
    regions = {
        "whole pancreas": metrics.whole_pancreas,
        "pancreas without lesion": metrics.pancreas,
        "lesion": metrics.lesion,
    }
    for name, region in regions.items():
        table.add_row(
            name,
            _number(region.dsc.mean),
            _number(region.nsd.mean),
            _number(region.hd95_mm.mean, digits=2),
            _number(region.assd_mm.mean, digits=2),
            _number(region.absolute_volume_error_ml.mean, digits=2),
            str(region.n_cases),
        )
    return table


def _subtypes(subtype: SubtypeMetrics) -> Iterator[Table]:
    """The values with their intervals; then what was taken for what."""
    if not subtype.n_cases:
        return
    values: dict[str, Estimate] = {
        "macro-F1": subtype.macro_f1,
        "balanced accuracy": subtype.balanced_accuracy,
        "AUROC, one against rest": subtype.auroc,
        "Matthews correlation": subtype.mcc,
        "calibration error (ECE)": Estimate(subtype.ece, None),
        "Brier score": Estimate(subtype.brier, subtype.brier_ci95),
    }
    if subtype.conformal is not None:
        goal = f"conformal coverage, goal {subtype.conformal.target_coverage:g}"
        values |= {goal: subtype.conformal.coverage, "set size": subtype.conformal.mean_size}
    table = _table("subtype", "value", "95% interval")
    for name, value in values.items():
        table.add_row(name, _number(value.mean), _interval(value.ci95))
    yield table
    table = _table("reference", "taken for 0", "1", "2", "recall", "precision", "F1", "cases")
    for counts, one in zip(subtype.confusion_matrix, subtype.per_class, strict=True):
        scores = [_number(value) for value in (one.recall, one.precision, one.f1)]
        table.add_row(f"subtype {one.subtype}", *map(str, counts), *scores, str(one.n_cases))
    yield table


def _groups(metrics: Metrics) -> Table:
    table = _table("group", "whole DSC", "lesion DSC", "lesions found", "subtype right", "cases")
    for group in (*metrics.by_subtype, *metrics.by_lesion_size):
        values = (
            group.whole_pancreas_dsc,
            group.lesion_dsc,
            group.lesion_sensitivity,
            group.subtype_accuracy,
        )
        if group.n_cases:
            table.add_row(group.name, *(_number(v.mean) for v in values), str(group.n_cases))
    return table


def _notes(metrics: Metrics) -> Iterator[str]:
    if metrics.missing:
        names = _some(metrics.missing)
        yield f"without prediction, counted as worst: {len(metrics.missing)} cases: {names}"
    if metrics.unreferenced:
        names = _some(metrics.unreferenced)
        yield f"without reference, left out: {len(metrics.unreferenced)} cases: {names}"
    yield from (f"failed: {failure.error}" for failure in metrics.failures[:MAX_NAMED])
    if len(metrics.failures) > MAX_NAMED:
        yield f"failed: {len(metrics.failures) - MAX_NAMED} more, see failures in metrics.json"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")


def _number(value: float | None, *, digits: int = 3) -> str:
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def _interval(ends: tuple[float, float] | None, *, sign: str = "") -> str:
    return "" if ends is None else f"{ends[0]:{sign}.3f} to {ends[1]:{sign}.3f}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.ASCII2)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _rendered(tables: Sequence[Table], notes: Sequence[str], *, colour: bool) -> str:
    text = io.StringIO()
    console = Console(
        file=text, width=WIDTH, force_terminal=colour, color_system="standard" if colour else None
    )
    for table in tables:
        table.box = box.ROUNDED if colour else box.ASCII2
        console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return text.getvalue()
