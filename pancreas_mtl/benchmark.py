"""Paired, interleaved timings with a check of the results.

python -m pancreas_mtl.benchmark            # all of them
python -m pancreas_mtl.benchmark what=loading
"""

from __future__ import annotations

from omegaconf import DictConfig

from pancreas_mtl.command import command
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.benchmarks import loading, precision, resampling

CHOICES = ("all", "resampling", "precision", "loading")


@command("benchmark")
def main(config: DictConfig) -> None:
    """Run the chosen benchmarks and print one line each."""
    if config.what not in CHOICES:
        raise UsageError(f"what={config.what}: choose one of {', '.join(CHOICES)}")
    if config.what in ("all", "resampling"):
        print(resampling(pairs=config.pairs).line())
    if config.what in ("all", "precision"):
        print(precision(pairs=config.pairs).line())
    if config.what in ("all", "loading"):
        for cases in config.cases:
            print(loading(cases, steps=config.steps).line())


if __name__ == "__main__":
    main()
