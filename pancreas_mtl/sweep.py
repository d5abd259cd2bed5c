"""Search over keys of the training: `python -m pancreas_mtl.sweep sweep=default data=quiz ...`.

Start the same command on several machines with one output_dir: they share the study.
"""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from pancreas_mtl.command import command
from pancreas_mtl.configuration import did_you_mean, known_keys
from pancreas_mtl.errors import UsageError

OWN = ("sweep", "output_dir", "resume", "overwrite")  # not handed on to the trainings


@command("sweep")
def main(config: DictConfig) -> None:
    """Train with values from a space, prune what lags behind, and say what was best."""
    try:
        from pancreas_mtl.search.results import best_command, results_table
        from pancreas_mtl.search.space import read_space
        from pancreas_mtl.search.study import SweepConfig, open_study
        from pancreas_mtl.search.trials import run_sweep
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; pip install 'pancreas-mtl[sweep]'"
        ) from None
    from pancreas_mtl.build import settings  # torch starts slowly

    if config.overwrite:
        raise UsageError("overwrite=true: a study is not overwritten; give another output_dir")
    sweep = settings(SweepConfig, config, "sweep")
    for key in sweep.space:
        if key not in known_keys("train"):
            hint = did_you_mean(key, known_keys("train"))
            raise UsageError(f"sweep.space.{key}: training has no such key{hint}")
    space = read_space(sweep.space)
    overrides = [o for o in HydraConfig.get().overrides.task if _key(o).split(".")[0] not in OWN]
    folder = Path(config.output_dir).absolute()
    study = open_study(folder, sweep, overrides)
    run_sweep(study, space, overrides, folder, sweep)
    Console().print(results_table(study))
    print(f"all trials: {folder / 'trials.csv'}")
    if again := best_command(study, overrides):
        print(f"the best again: {again}")


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")


if __name__ == "__main__":
    main()
