"""The page: everything found in the runs, in one self-contained HTML file.

Every number from `metrics.json` stands in a `<data>` element that carries the full value and the
dotted path it comes from, so that the page can be checked against the file.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable, Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pancreas_mtl.data.files import atomic_path, make_folder
from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.evaluation.report import charts, score_charts, tables
from pancreas_mtl.evaluation.report.about import describe
from pancreas_mtl.evaluation.report.cases import (
    case_rows,
    columns,
    picture_alt,
    verdict,
    why_no_picture,
)
from pancreas_mtl.evaluation.report.charts import Chart, plain_words
from pancreas_mtl.evaluation.report.runs import Run, RunCase, read_runs
from pancreas_mtl.evaluation.report.volumes import (
    CaseSource,
    Overlay,
    PackedCase,
    pack_case,
    share_out,
)

PACKAGE = "pancreas_mtl.evaluation.report"
ASSETS = files(PACKAGE) / "assets"
INLINED = ("report.css", "report.js", "viewer.js")
LICENCES = ("niivue.LICENSE.txt", "niivue.dependencies.LICENSE.txt")
WORST = 6  # cases shown as pictures above the table
WINDOWS_HU = (
    ("Soft tissue", -160, 240),
    ("Pancreas", -65, 185),
    ("Lesion", 0, 150),
    ("All", -200, 312),
)


def write_report(runs: Sequence[Path], output_dir: Path, *, workers: int = 1) -> Path:
    """Write `report.html` about the runs.

    Args:
        runs: training, evaluation or prediction folders, in the order in which they are shown.
        output_dir: made if missing.
        workers: processes that read and pack the volumes.

    Returns:
        The path of the page.

    Raises:
        UsageError: a folder holds no run, a file of a run cannot be read, or `output_dir` cannot
            be made.
        CaseError: the page cannot be written.
    """
    found = read_runs(runs)
    path = make_folder(output_dir) / "report.html"
    packed, problems = pack_cases(found, workers=workers)
    context = _context(found, packed, problems)
    with atomic_path(path) as temporary:
        _environment().get_template("report.html.jinja").stream(context).dump(
            str(temporary), encoding="utf-8"
        )
    return path


def pack_cases(runs: Sequence[Run], *, workers: int) -> tuple[list[PackedCase], list[str]]:
    """Pack every case that has an image, once for all runs; say which could not be packed."""
    packed, problems = {}, []
    sources = case_sources(runs)
    budget = share_out(len(sources), sum(len(source.overlays) for source in sources))
    pack = partial(pack_case, budget=budget)
    for source, result in map_in_processes(pack, sources, workers=workers, label="pictures"):
        if isinstance(result, Exception):
            problems.append(f"No pictures of {source.name}: {result}")
        else:
            packed[source] = result
    return [packed[source] for source in sources if source in packed], sorted(problems)


def case_sources(runs: Sequence[Run]) -> list[CaseSource]:
    """The cases with an image; runs that answered the same image share one source."""
    sources: dict[Path, list[tuple[Run, RunCase]]] = {}
    for run in runs:
        for case in run.cases:
            if case.files.image is not None:
                sources.setdefault(case.files.image.resolve(), []).append((run, case))
    return [
        CaseSource(
            name=found[0][1].name,
            image=image,
            reference=next((c.files.reference for _, c in found if c.files.reference), None),
            overlays=tuple(
                Overlay(c.link, c.files.prediction, c.files.attention, picture_title(c))
                for _, c in found
            ),
        )
        for image, found in sources.items()
    ]


def picture_title(case: RunCase) -> str:
    """One line above a case's picture: name, scores, subtype."""
    parts = [case.name, "no prediction"] if case.scores.get("missing") else [case.name]
    for key, name in charts.REGIONS:
        if (value := case.scores.get(f"{key}_dsc")) is not None:
            parts.append(f"{name} DSC {value:.3f}")
    if (predicted := case.scores.get("subtype_predicted")) is not None:
        reference = case.scores.get("subtype")
        shown = "unknown" if reference is None else reference
        parts.append(f"subtype {predicted} (reference {shown})")
    return "   ".join(parts)


def _context(runs: list[Run], packed: list[PackedCase], problems: list[str]) -> dict[str, Any]:
    rows = case_rows(runs, packed)
    comparable = tables.comparable(runs)
    return {
        "runs": runs,
        "targets": tables.targets(runs),
        "scores": tables.scores(runs),
        "groups": tables.groups(runs),
        "group_columns": tables.GROUP_COLUMNS,
        "confusions": tables.confusion_matrices(runs),
        "comparable": comparable,
        "differences": tables.differences(comparable),
        "settings": tables.settings(runs),
        "optimism": tables.optimism(comparable, "subtype.macro_f1"),
        "charts": list(_charts(runs)),
        "rows": rows,
        "columns": columns(rows),
        "worst": [row for row in rows if row.pictures][:WORST],
        "packed": packed,
        "notes": [note for run in runs for note in run.notes] + problems,
        "windows": WINDOWS_HU,
        "licences": [(ASSETS / name).read_text("utf-8") for name in LICENCES],
        "niivue": niivue_gz() if packed else "",
        "assets": {name: Markup((ASSETS / name).read_text("utf-8")) for name in INLINED},
    }


def _charts(runs: Sequence[Run]) -> Iterable[Chart]:
    yield from charts.training_curves(runs)
    makers = (
        score_charts.dsc_by_subtype,
        score_charts.dsc_by_size,
        score_charts.volume_agreement,
        score_charts.reliability,
        score_charts.froc,
        charts.seconds_per_stage,
    )
    yield from (chart for make in makers if (chart := make(runs)))


@cache
def niivue_gz() -> str:
    """The viewer's library, gzipped, in base64."""
    code = (ASSETS / "niivue.umd.js").read_bytes()
    return base64.b64encode(gzip.compress(code, compresslevel=9, mtime=0)).decode("ascii")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = (tables.datum, tables.estimate, describe, picture_alt, verdict, why_no_picture)
    environment.globals.update({helper.__name__: helper for helper in helpers})
    environment.filters["words"] = plain_words
    return environment
