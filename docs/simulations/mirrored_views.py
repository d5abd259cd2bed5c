"""What averaging over mirrored views gives to networks that were trained on mirrored patches.

    python docs/simulations/mirrored_views.py outputs/bench-accuracy/small mirrored

takes the networks of one configuration of `bench_accuracy`, predicts the test cases with every
preset, and prints the tables of `bench_accuracy`, with differences to `accurate`. Predictions lie
in `views/` beside the trials; those that are there are kept.
"""

import subprocess
import sys
from pathlib import Path

from pancreas_mtl.evaluation.trial_table import read_outcomes, render_markdown, summarise
from pancreas_mtl.evaluation.trials import Laboratory, Trial
from pancreas_mtl.inference.predictor import PRESETS


def main(folder: Path, configuration: str) -> None:
    seeds = sorted(int(p.name[4:]) for p in (folder / "trials" / configuration).glob("seed*"))
    views = Laboratory(folder / "views")
    trials = [
        Trial(preset, seed, (), members=(configuration,)) for preset in PRESETS for seed in seeds
    ]
    for trial in trials:
        predictions, evaluation = (views.folder(trial) / n for n in ("predictions", "evaluation"))
        if not (evaluation / "metrics.json").exists():
            bundle = folder / "trials" / configuration / f"seed{trial.seed}" / "run" / "bundle"
            how = [f"model={bundle}", f"preset={trial.configuration}", "overwrite=true"]
            run("predict.py", f"input={folder / 'data/test'}", f"output_dir={predictions}", *how)
            where = [f"references={folder / 'data/references'}", f"output_dir={evaluation}"]
            run("-m", "pancreas_mtl.evaluate", f"predictions={predictions}", *where)
    outcomes = read_outcomes(trials, views)
    print(render_markdown(summarise(outcomes), outcomes, title=f"{configuration}, by presets"))


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
