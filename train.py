"""Train one variant: `python train.py experiment=balanced data=quiz data.root=DIR`.

`python train.py --help` shows every choice; `-m` with lists runs several.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig

from pancreas_mtl import build
from pancreas_mtl.command import command, is_said
from pancreas_mtl.configuration import print_config
from pancreas_mtl.evaluation.finish import finish_run
from pancreas_mtl.evaluation.jobs import report_jobs
from pancreas_mtl.evaluation.task import Task
from pancreas_mtl.inference.bundle import save_bundle
from pancreas_mtl.multirun import claim, is_job
from pancreas_mtl.run_folder import open_run
from pancreas_mtl.run_record import goes_on, is_finished, note, recorded
from pancreas_mtl.training.checkpoints import averaged_weights

log = logging.getLogger(__name__)


@command("train", after_jobs=report_jobs)
def main(config: DictConfig) -> None:
    """Prepare the data, fit, keep the best weights as a bundle, evaluate it on the fold."""
    build.check(config)
    if config.print_config:
        print_config(config)
        return
    dataset = build.dataset(config)
    if not dataset.teaches_subtypes and config.model.head != "none":
        log.warning("no case to train on has a subtype, so the network has no head for it")
        config.model.head = "none"
        build.check(config)
    run_dir = Path(config.output_dir)
    if is_job():
        claim(run_dir)
    # The `overwrite` of a debug file is meant for that file's folder alone.
    config.overwrite = config.overwrite and (is_said("overwrite") or not is_said("output_dir"))
    started_again = goes_on(config, run_dir, num_processes=build.num_processes(config))
    config.resume = config.resume or started_again
    if config.resume and is_finished(config, run_dir):
        print(f"{run_dir}: finished already")
        return
    checkpoint = open_run(config, run_dir)
    with recorded(config, run_dir), build.logging_run(config):
        pl.seed_everything(config.seed, workers=True, verbose=False)
        prepared = build.prepare(config, dataset, run_dir)
        note(run_dir, data=build.data_facts(config, prepared))
        trainer, module = build.trainer(config, run_dir), build.module(config, prepared.plan)
        data = build.datamodule(config, prepared)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:
            weights = averaged_weights(run_dir / "checkpoints" / "best.ckpt")
            save_bundle(run_dir / "bundle", weights, prepared.plan, build.plain(config))
            finish_run(
                run_dir,
                dataset.part(dataset.split.validation),
                task=build.settings(Task, config, "task"),
                origin=build.origin(config, dataset),
                workers=build.workers(config),
                loggers=trainer.loggers,
                step=trainer.global_step,
            )


if __name__ == "__main__":
    main()
