"""Compare predictions with references, in the scanner's own grid.

python -m pancreas_mtl.evaluate predictions=DIR references=DIR output_dir=DIR
python -m pancreas_mtl.evaluate runs=outputs/runs/balanced output_dir=DIR   # all folds of a variant
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from pancreas_mtl.command import command
from pancreas_mtl.data.pool import default_workers
from pancreas_mtl.errors import CaseError
from pancreas_mtl.evaluation.compare import compare, read_cases, write_comparisons
from pancreas_mtl.evaluation.cross_validation import ENSEMBLE
from pancreas_mtl.evaluation.evaluate import BYTES_PER_CASE, evaluate
from pancreas_mtl.evaluation.inputs import find_inputs
from pancreas_mtl.evaluation.results import check_folder, folder_if_used, write_results
from pancreas_mtl.evaluation.table import render_comparison, render_table
from pancreas_mtl.evaluation.task import Task
from pancreas_mtl.inference.card import save_ensemble_card


@command("evaluate")
def main(config: DictConfig) -> None:
    """Evaluate, write `metrics.json`, `metrics.csv` and pictures, print the tables."""
    from pancreas_mtl.build import plain, settings  # Lightning starts slowly

    task = settings(Task, config, "task")
    workers = default_workers(BYTES_PER_CASE) if config.workers is None else config.workers
    output_dir = check_folder(Path(config.output_dir))
    predictions, references = find_inputs(plain(config), output_dir, task=task, workers=workers)
    names = {one.name for one in references}
    other = config.compare and read_cases(Path(config.compare), names, task=task)
    options = {"task": task, "workers": workers, "missing": config.missing}
    with folder_if_used(output_dir):
        metrics = evaluate(predictions, references, **options)
    artefacts = write_results(metrics, output_dir)
    if config.runs:
        save_ensemble_card(output_dir / ENSEMBLE, metrics.as_json())
    if config.overlays:
        from pancreas_mtl.evaluation.overlays import draw_overlays  # matplotlib starts slowly

        pictures = output_dir / "overlays"
        artefacts.append(draw_overlays(metrics, predictions, references, pictures, workers=workers))
    print(render_table(metrics, artefacts=artefacts, colour=sys.stdout.isatty()))
    if other:
        comparisons = compare(metrics, other, task=task)
        write_comparisons(comparisons, output_dir / "comparison.json")
        print(render_comparison(comparisons, Path(config.compare), colour=sys.stdout.isatty()))
    if metrics.failures:
        some = f"{len(metrics.failures)} of {metrics.n_cases} cases failed (see {artefacts[0]})"
        raise CaseError(f"{some}, the first: {metrics.failures[0].error}")


if __name__ == "__main__":
    main()
