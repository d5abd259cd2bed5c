"""Make a phantom dataset: CT-like crops around the pancreas, with masks and subtypes.

python -m pancreas_mtl.phantom output_dir=data/phantom num_cases=100 difficulty=easy
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from pancreas_mtl.command import command
from pancreas_mtl.data.phantom import write_dataset
from pancreas_mtl.data.pool import default_workers

BYTES_PER_CASE = 4e8  # in memory, for a large crop


@command("phantom")
def main(config: DictConfig) -> None:
    """Write the dataset and say in one line where it is."""
    output_dir = Path(config.output_dir)
    plan = write_dataset(
        output_dir,
        num_cases=config.num_cases,
        num_train=config.num_train,
        num_validation=config.num_validation,
        num_test=config.num_test,
        seed=config.seed,
        layout=config.layout,
        difficulty=config.difficulty,
        size=config.size,
        workers=default_workers(BYTES_PER_CASE) if config.workers is None else config.workers,
        overwrite=config.overwrite,
    )
    print(
        f"{output_dir}: {plan.num_train} training, {plan.num_validation} validation and "
        f"{plan.num_test} test cases ({plan.difficulty}, {plan.size}, layout {plan.layout}, "
        f"seed {plan.seed})"
    )


if __name__ == "__main__":
    main()
