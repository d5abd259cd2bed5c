"""Predict masks and subtypes: `python predict.py model=BUNDLE input=PATH output_dir=DIR`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from pancreas_mtl import build
from pancreas_mtl.command import command
from pancreas_mtl.data.files import claimed, make_folder
from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference.pipeline import AfterCase, predict_cases
from pancreas_mtl.inference.shards import Shard, is_done, join_shards
from pancreas_mtl.inference.writer import CaseRecord, close_output, open_output, run_facts


@command("predict")
def main(config: DictConfig) -> None:
    """Predict every case of the input, or of this shard, that is not done yet; list what failed."""
    output_dir, shard = Path(config.output_dir), build.shard(config)
    failed: list[CaseRecord] = []
    if not is_done(output_dir, shard, overwrite=config.overwrite):
        failed = _predict(config, shard.folder(output_dir), shard)
    if not join_shards(output_dir, shard.count):
        print(f"{output_dir}: complete when the other shards are done")
    if failed:
        more = f" (and {len(failed) - 1} more in run.json)" if len(failed) > 1 else ""
        raise CaseError(f"{failed[0].error}{more}")


def _predict(config: DictConfig, output_dir: Path, shard: Shard) -> list[CaseRecord]:
    predictor = build.predictor(config)
    sources = shard.take(build.sources(config, predictor))
    facts = run_facts(predictor, build.plain(config))
    fingerprint, names = build.fingerprint_of(facts), [source.name for source in sources]
    after_case = _preview(output_dir) if config.preview else None
    with claimed(make_folder(output_dir)):
        done = open_output(output_dir, fingerprint, names=names, overwrite=config.overwrite)
        finished = {record.name for record in done}
        rest = [source for source in sources if source.name not in finished]
        records = [*done, *predict_cases(predictor, rest, output_dir, after_case=after_case)]
        close_output(output_dir, records, facts)
    failed = [record for record in records if record.error is not None]
    print(f"{output_dir}: {len(records) - len(failed)} of {len(records)} cases predicted")
    return failed


def _preview(output_dir: Path) -> AfterCase:
    from pancreas_mtl.inference.pictures import write_preview  # matplotlib starts slowly

    return partial(write_preview, output_dir)


if __name__ == "__main__":
    main()
