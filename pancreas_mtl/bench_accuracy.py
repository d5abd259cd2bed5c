"""Compare training configurations on phantoms that took no part in training.

python -m pancreas_mtl.bench_accuracy comparison=heads seeds=[0,1,2]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pancreas_mtl.command import command
from pancreas_mtl.data.phantom import write_dataset
from pancreas_mtl.data.pool import default_workers
from pancreas_mtl.errors import CaseError
from pancreas_mtl.evaluation.partial_labels import write_parts
from pancreas_mtl.evaluation.trial_runs import run_trials
from pancreas_mtl.evaluation.trial_table import read_outcomes, render_markdown, summarise, write_csv
from pancreas_mtl.evaluation.trials import Laboratory, list_trials

PHANTOM_BYTES = 4e8  # in memory, for a large crop


@command("bench_accuracy")
def main(config: DictConfig) -> None:
    """Make the phantoms, run what is not done yet, write the table of what is."""
    options: Any = OmegaConf.to_container(config, resolve=True)
    output_dir = Path(options["output_dir"]).absolute()
    trials = list_trials(
        options["configurations"],
        options["seeds"],
        options["training"],
        ensembles=options["ensembles"],
        folds=options["folds"],
        only=options["only"],
    )
    workers = default_workers(PHANTOM_BYTES)
    write_dataset(output_dir / "data", **options["phantoms"], num_validation=0, workers=workers)
    write_parts(output_dir / "data", output_dir / "parts", options["parts"])
    laboratory = Laboratory(output_dir, threads=options["threads"])
    failures = run_trials(trials, laboratory, jobs=options["jobs"])

    outcomes = read_outcomes(trials, laboratory)
    lines = summarise(outcomes, resamples=options["bootstrap_resamples"])
    table = output_dir / f"{options['comparison']}.md"
    write_csv(lines, table.with_suffix(".csv"))
    table.write_text(render_markdown(lines, outcomes, title=options["comparison"]))
    print(f"{table.read_text()}\n{table}")
    if failures:
        raise CaseError(f"{len(failures)} of {len(trials)} trials failed, the first: {failures[0]}")


if __name__ == "__main__":
    main()
