"""Write one self-contained HTML page about a run, or about several side by side.

python -m pancreas_mtl.report runs=[DIR,...] output_dir=DIR
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from pancreas_mtl.command import command
from pancreas_mtl.data.pool import default_workers
from pancreas_mtl.evaluation.report import write_report


@command("report")
def main(config: DictConfig) -> None:
    """Write `report.html` and say where it is."""
    runs = [config.runs] if isinstance(config.runs, str) else config.runs
    workers = default_workers() if config.workers is None else config.workers
    path = write_report([Path(run) for run in runs], Path(config.output_dir), workers=workers)
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MB)")


if __name__ == "__main__":
    main()
