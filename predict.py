"""Predict masks and subtypes: `python predict.py model=BUNDLE input=PATH output_dir=DIR`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pancreas_mtl import build
from pancreas_mtl.command import command
from pancreas_mtl.data.files import claimed, make_folder
from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference.calibration import digest_of
from pancreas_mtl.inference.pipeline import AfterCase, Source, predict_cases
from pancreas_mtl.inference.predictor import Predictor
from pancreas_mtl.inference.shards import failures_of, is_done, join_shards
from pancreas_mtl.inference.writer import (
    CaseRecord,
    check_free,
    close_output,
    open_output,
    run_facts,
)


@command("predict")
def main(config: DictConfig) -> None:
    """Predict every case of the input, or of this shard, that is not done yet; list what failed."""
    output_dir, shard = Path(config.output_dir), build.shard(config)
    predictor = build.predictor(config)
    facts = run_facts(predictor, build.plain(config))
    facts["fingerprint"] = build.fingerprint_of(facts)
    if is_done(output_dir, shard, facts["fingerprint"], overwrite=config.overwrite):
        failed = failures_of(output_dir, shard)
    else:
        sources = build.sources(config, predictor)
        names = [source.name for source in sources]
        facts["sources"] = digest_of(names)
        if shard.count > 1:  # the join will move answers there
            check_free(output_dir, names)
        failed = _predict(config, predictor, shard.take(sources), shard.folder(output_dir), facts)
    if not join_shards(output_dir, shard.count):
        print(f"{output_dir}: complete when the other shards are done")
    if failed:
        more = f" (and {len(failed) - 1} more in run.json)" if len(failed) > 1 else ""
        raise CaseError(f"{failed[0].error}{more}")


def _predict(
    config: DictConfig,
    predictor: Predictor,
    sources: Sequence[Source],
    output_dir: Path,
    facts: Mapping[str, Any],
) -> list[CaseRecord]:
    names = [source.name for source in sources]
    after_case = _preview(output_dir) if config.preview else None
    with claimed(make_folder(output_dir)):
        done = open_output(
            output_dir, facts["fingerprint"], names=names, overwrite=config.overwrite
        )
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
