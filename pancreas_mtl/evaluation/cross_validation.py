"""Brings the folds of a variant together: out-of-fold predictions, and the ensemble.

<output_dir>/oof/         every run's `oof/` in one folder, and folds.csv: which run it came from
<output_dir>/calibrated/  the same cases, each fold calibrated by the others
<output_dir>/ensemble/    the runs' bundles, calibrated by all: `predict.py model=.../ensemble`
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pancreas_mtl.data.files import (
    atomic_folder,
    link_or_copy,
    make_folder,
    write_csv,
)
from pancreas_mtl.data.names import to_cell
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.calibrate import HeldOut, cross_fit, fit
from pancreas_mtl.evaluation.folds import OOF, check_runs, find_runs, read_run_references
from pancreas_mtl.evaluation.held_out import (
    LOSSES,
    copy_volumes,
    read_held_out,
    read_losses,
    write_calibrated,
    write_losses,
)
from pancreas_mtl.evaluation.predictions import read_predictions
from pancreas_mtl.evaluation.references import Reference
from pancreas_mtl.inference.calibration import save_calibration
from pancreas_mtl.inference.card import save_member_card
from pancreas_mtl.inference.record import RECORD
from pancreas_mtl.inference.writer import (
    JOURNAL,
    CaseRecord,
    close_output,
    open_output,
    read_record,
)

CALIBRATED, ENSEMBLE = "calibrated", "ensemble"
KIND = "out-of-fold"


def cross_validate(
    runs: Sequence[Path],
    output_dir: Path,
    *,
    coverage: float,
    partial: bool = False,
    workers: int = 1,
) -> tuple[Path, list[Reference]]:
    """Gather the runs' out-of-fold cases, calibrate them and the ensemble.

    Args:
        runs: training folders, or folders of them.
        output_dir: gets the three folders above.
        coverage: that the conformal sets state.
        partial: whether cases that no run held out are left out.
        workers: processes.

    Returns:
        The folder of calibrated predictions, and their references.

    Raises:
        UsageError: a folder that holds no finished run, runs that are no cross-validation, see
            `check_runs`, or an output folder with files in the place of those above.
    """
    folds = find_runs(runs)
    everything = read_run_references(folds.values())
    check_runs(folds, partial=partial)
    _refuse_other_files(output_dir)
    group_of = gather(folds, output_dir / OOF)
    references = [r for r in everything if r.name in group_of]
    cases = read_held_out(output_dir / OOF, references, group_of, workers=workers)
    by_group = cross_fit(cases, coverage=coverage, kind=KIND)
    write_calibrated(
        output_dir / OOF, {c.name: by_group[c.group] for c in cases}, output_dir / CALIBRATED
    )
    make_ensemble(folds, cases, output_dir / ENSEMBLE, coverage=coverage)
    return output_dir / CALIBRATED, references


def _refuse_other_files(output_dir: Path) -> None:
    """Only where an evaluation has been are its folders there to be made anew."""
    own = (output_dir / "metrics.json", output_dir / OOF / RECORD, output_dir / OOF / JOURNAL)
    if any(path.exists() for path in own):
        return
    for name in (OOF, CALIBRATED, ENSEMBLE):
        if (output_dir / name).exists():
            raise UsageError(
                f"output_dir={output_dir} holds {name}, which no evaluation wrote; give another "
                "output_dir"
            )


def gather(runs: Mapping[str, Path], oof_dir: Path) -> dict[str, str]:
    """Bring the runs' `oof/` into one folder; the short name of each case's run."""
    predictions = read_predictions([run / OOF for run in runs.values()])
    shutil.rmtree(oof_dir, ignore_errors=True)
    open_output(oof_dir, "gathered", overwrite=True)
    records: list[CaseRecord] = []
    group_of: dict[str, str] = {}
    losses: dict[str, tuple[float, ...]] = {}
    facts: dict[str, Any] = {}
    for short, run in runs.items():
        document = json.loads((run / OOF / RECORD).read_text())
        for raw in document.pop("failures"):  # which evaluation counts as the worst
            group_of[raw["name"]] = short
            records.append(read_record(raw))
        for raw in document.pop("cases"):
            name = raw["name"]
            group_of[name] = short
            copy_volumes(run / OOF, oof_dir, name, with_mask=True)
            probabilities = predictions[name].probabilities
            records.append(replace(read_record(raw), subtype_probabilities=probabilities))
        losses |= read_losses(run / OOF / LOSSES)
        facts = document | {"bundles": [*facts.get("bundles", []), *document["bundles"]]}
    write_losses(losses, oof_dir / LOSSES)
    rows = [(to_cell(f"{name}.nii.gz"), run) for name, run in sorted(group_of.items())]
    write_csv(oof_dir / "folds.csv", ["Names", "Run"], rows)
    close_output(oof_dir, records, facts)
    return group_of


def make_ensemble(
    runs: Mapping[str, Path], cases: Sequence[HeldOut], output_dir: Path, *, coverage: float
) -> None:
    """Copy the runs' bundles; temperatures and clean-up are fitted on all out-of-fold cases.

    Each bundle keeps its answers for the cases that it had not seen itself, since conformal sets of
    an ensemble compare case by case with the right model.
    """
    together = fit(cases, coverage=coverage, kind=KIND)
    with atomic_folder(output_dir) as draft:
        for short, run in runs.items():
            own = fit([c for c in cases if c.group == short], coverage=coverage, kind=KIND)
            bundle = make_folder(draft / short)
            for file in (run / "bundle").iterdir():
                link_or_copy(file, bundle / file.name)
            (bundle / "calibration.json").unlink(missing_ok=True)
            save_member_card(bundle)
            seen = replace(
                together, conformity=own.conformity, answers=own.answers, cases=own.cases
            )
            save_calibration(bundle, seen)
