"""Train one variant: `python train.py experiment=balanced data=quiz data.root=DIR`.

`python train.py --help` shows every choice; `-m` with lists runs several.
"""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig

from pancreas_mtl import build
from pancreas_mtl.command import command
from pancreas_mtl.configuration import print_config
from pancreas_mtl.evaluation.boards import draw_results, log_results
from pancreas_mtl.evaluation.evaluate import evaluate
from pancreas_mtl.evaluation.held_out import calibrate, predict_held_out
from pancreas_mtl.evaluation.references import Reference
from pancreas_mtl.evaluation.report import write_report
from pancreas_mtl.evaluation.results import write_metrics
from pancreas_mtl.evaluation.task import Task
from pancreas_mtl.inference.bundle import save_bundle, save_card
from pancreas_mtl.inference.calibration import save_calibration
from pancreas_mtl.run_folder import open_run
from pancreas_mtl.training.checkpoints import averaged_weights


@command("train")
def main(config: DictConfig) -> None:
    """Prepare the data, fit, keep the best weights as a bundle, evaluate it on the fold."""
    build.check(config)
    if config.print_config:
        print_config(config)
        return
    dataset = build.dataset(config)
    run_dir = Path(config.output_dir)
    checkpoint = open_run(config, run_dir)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    prepared = build.prepare(config, dataset, run_dir)
    trainer = build.trainer(config, run_dir)
    module = build.module(config, prepared.plan)
    try:
        data = build.datamodule(config, prepared)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:
            weights = averaged_weights(run_dir / "checkpoints" / "best.ckpt")
            save_bundle(run_dir / "bundle", weights, prepared.plan, build.plain(config))
            _finish(config, trainer, run_dir, dataset)
    finally:
        build.finish_logging(config)


def _finish(config: DictConfig, trainer: pl.Trainer, run_dir: Path, dataset: build.Dataset) -> None:
    """Predict the validation cases in full, calibrate the bundle, evaluate, draw and report."""
    workers, task = build.workers(config), build.settings(Task, config, "task")
    bundle, oof, calibrated = (run_dir / name for name in ("bundle", "oof", "validation"))
    validation = dataset.part(dataset.split.validation)
    references = [Reference(case.name, case.mask, case.subtype) for case in validation]
    predict_held_out(bundle, validation, oof)
    fitted = calibrate(oof, references, calibrated, coverage=task.coverage, workers=workers)
    save_calibration(bundle, fitted)
    metrics = evaluate(calibrated, references, task=task, workers=workers)
    write_metrics(metrics, run_dir / "metrics.json")
    save_card(bundle, origin=build.origin(config, dataset), metrics=metrics.as_json())
    draw_results(metrics, run_dir, references, workers=workers)
    log_results(trainer.loggers, metrics, run_dir, step=trainer.global_step)
    page = write_report([run_dir], run_dir, workers=workers)
    print(f"bundle: {run_dir / 'bundle'}\nreport: {page}")


if __name__ == "__main__":
    main()
