"""Paired timings against stock nnU-Net, with a check that both give the same.

python -m pancreas_mtl.benchmark what=inference  # or data, or train; `make bench-nnunet-env` first
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from pancreas_mtl import build
from pancreas_mtl.benchmarks.data import benchmark_data
from pancreas_mtl.benchmarks.inference import Model, Ours, Sides, benchmark_inference
from pancreas_mtl.benchmarks.inputs import QUIZ_PLAN, QUIZ_SIZES, TINY_PLAN, TINY_SIZES
from pancreas_mtl.benchmarks.train import benchmark_train
from pancreas_mtl.command import command
from pancreas_mtl.data.augment import AugmentConfig
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.engines.torch_engine import choose_device


@command("benchmark")
def main(config: DictConfig) -> None:
    """Run one benchmark; print its table, and leave it with all answers in output_dir."""
    python, work = Path(config.nnunet_python), Path(config.output_dir).absolute()
    if config.what not in ("inference", "data", "train"):
        raise UsageError(f"what={config.what}: choose one of inference, data, train")
    if config.pairs < 1:
        raise UsageError(f"pairs={config.pairs}: give a number from 1")
    if not python.exists():
        raise UsageError(f"nnunet_python={python}: not found; make it by `make bench-nnunet-env`")
    work.mkdir(parents=True, exist_ok=True)
    plan, sizes = (TINY_PLAN, TINY_SIZES) if config.tiny else (QUIZ_PLAN, QUIZ_SIZES)
    device = str(choose_device(config.device))
    sides, pairs = Sides(str(python.absolute()), work, device), config.pairs
    if config.what == "inference":
        folder = Path(config.model_folder) if config.model_folder else None
        model = Model(folder, config.fold, config.checkpoint, config.model_minutes)
        engine = config.engine or ("torch" if device.startswith("cuda") else "openvino")
        how, largest = Ours(engine, config.precision), not config.tiny
        text = benchmark_inference(sides, model, plan, sizes, how=how, pairs=pairs, largest=largest)
    elif config.what == "data":
        more = {"batches": config.batches, "pairs": pairs, "small": config.tiny}
        augment = build.settings(AugmentConfig, config, "augment")
        text = benchmark_data(sides, plan, sizes, augment=augment, **more)
    else:
        cases = list(config.cases)
        text = benchmark_train(sides, plan, pairs=pairs, cases=cases, batches=config.batches)
    print(f"{text}\n{work / config.what}.json")


if __name__ == "__main__":
    main()
