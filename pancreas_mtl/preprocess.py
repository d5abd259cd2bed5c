"""Plan a dataset and fill the cache, alone or in shards on many machines, before any training.

python -m pancreas_mtl.preprocess data=quiz data.root=DIR output_dir=DIR shard.index=0 shard.count=8
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from pancreas_mtl import build
from pancreas_mtl.command import command
from pancreas_mtl.data.files import make_folder
from pancreas_mtl.data.preprocess import preprocess


@command("preprocess")
def main(config: DictConfig) -> None:
    """Write `plan.json`, unless it is there, and bring this shard's cases into the cache."""
    shard = build.shard(config)
    dataset = build.dataset(config)
    output_dir = make_folder(Path(config.output_dir))
    build.claim_plan(config, output_dir)
    plan = build.plan(config, dataset, output_dir)
    names = sorted({*dataset.split.train, *dataset.split.validation})
    cases = dataset.part(shard.take(names))
    preprocess(cases, plan, Path(config.paths.cache), workers=build.workers(config))
    print(f"{config.paths.cache}: {len(cases)} of {len(names)} cases are in the cache")
    print(f"train with plan.bundle={config.output_dir}")


if __name__ == "__main__":
    main()
