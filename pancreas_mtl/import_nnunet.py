"""Make a bundle of an nnU-Net v2 checkpoint, to predict with this project's predictor.

python -m pancreas_mtl.import_nnunet model_folder=DIR fold=0 output_dir=bundle
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from pancreas_mtl.command import command
from pancreas_mtl.interop.nnunet import import_nnunet


@command("import_nnunet")
def main(config: DictConfig) -> None:
    """Convert one checkpoint; one that would not give nnU-Net's answer is refused."""
    origin = import_nnunet(
        Path(config.model_folder),
        config.fold,
        config.checkpoint,
        Path(config.output_dir),
        overwrite=config.overwrite,
    )
    print(
        f"{config.output_dir}: {origin['trainer']} of {origin['dataset']}, "
        f"{origin['configuration']}, fold {origin['fold']}; it segments and gives no subtype"
    )


if __name__ == "__main__":
    main()
