"""Write a bundle for another runtime, checked against torch.

python -m pancreas_mtl.export model=BUNDLE format=onnx output_dir=DIR
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from pancreas_mtl.command import command
from pancreas_mtl.interop.export import export_bundle


@command("export")
def main(config: DictConfig) -> None:
    """Export, and say how far the result is from torch."""
    parity = export_bundle(
        Path(config.model),
        Path(config.output_dir),
        format_name=config.format,
        overwrite=config.overwrite,
    )
    off = max(parity["largest_difference"].values())
    print(f"{config.output_dir}: {parity['runtime']}, largest difference from torch {off:.1e}")


if __name__ == "__main__":
    main()
