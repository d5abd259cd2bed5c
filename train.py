"""Train one variant: `python train.py experiment=balanced data=quiz data.root=DIR`.

`python train.py --help` shows every choice; `-m` with lists runs several.
"""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig

from pancreas_mtl import build
from pancreas_mtl.command import command
from pancreas_mtl.evaluation.validate import predict_validation
from pancreas_mtl.inference.bundle import save_bundle
from pancreas_mtl.run_folder import open_run
from pancreas_mtl.training.checkpoints import averaged_weights


@command("train")
def main(config: DictConfig) -> None:
    """Prepare the data, fit, keep the best weights as a bundle, evaluate it on the fold."""
    build.check(config)
    dataset = build.dataset(config)
    run_dir = Path(config.output_dir)
    checkpoint = open_run(config, run_dir)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    prepared = build.prepare(config, dataset, run_dir)
    trainer = build.trainer(config, run_dir)
    module = build.module(config, prepared.plan)
    trainer.fit(module, build.datamodule(config, prepared), ckpt_path=checkpoint)
    if trainer.is_global_zero:
        weights = averaged_weights(run_dir / "checkpoints" / "best.ckpt")
        save_bundle(run_dir / "bundle", weights, prepared.plan, build.plain(config))
        validation = dataset.part(dataset.split.validation)
        predict_validation(run_dir / "bundle", validation, run_dir / "validation")


if __name__ == "__main__":
    main()
