"""Bring a dataset into another layout, subtypes and official split included.

python -m pancreas_mtl.convert from=quiz to=nnunet root=DIR output_dir=DIR/Dataset172_PancreasQuiz
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from pancreas_mtl.command import command
from pancreas_mtl.data.pool import default_workers
from pancreas_mtl.errors import CaseError
from pancreas_mtl.interop.convert import convert_dataset

BYTES_PER_CASE = 4e8  # in memory: a mask of 512 x 512 x 1500 voxels


@command("convert")
def main(config: DictConfig) -> None:
    """Convert all cases; say what the new layout cannot hold, and fail if a case was left out."""
    output_dir = Path(config.output_dir)
    conversion = convert_dataset(
        Path(config.root),
        output_dir,
        source=config["from"],
        target=config["to"],
        link=config.link,
        workers=config.workers or default_workers(BYTES_PER_CASE),
        overwrite=config.overwrite,
    )
    for note in conversion.notes:
        print(f"note: {note}")
    print(f"{output_dir}: {len(conversion.written)} cases in layout {config['to']}")
    if conversion.left_out:
        first, *more = conversion.left_out.values()
        rest = f" (and {len(more)} more)" if more else ""
        raise CaseError(f"{len(conversion.left_out)} cases left out: {first}{rest}")


if __name__ == "__main__":
    main()
