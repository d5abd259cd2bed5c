"""What this project does, when asked: the same tasks as `nnunet_side`, on the same device."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from pancreas_mtl.benchmarks.inputs import plan_from
from pancreas_mtl.benchmarks.side import serve
from pancreas_mtl.data.augment import Augment, AugmentConfig
from pancreas_mtl.data.datamodule import SamplingConfig, read_size
from pancreas_mtl.data.images import find_images
from pancreas_mtl.data.patches import PatchDataset, PatchSampler
from pancreas_mtl.data.preprocess import CacheEntry, preprocess_case
from pancreas_mtl.inference.engines import Precision, choose_precision
from pancreas_mtl.inference.pipeline import nifti_source, predict_cases
from pancreas_mtl.inference.predictor import Predictor, PresetName
from pancreas_mtl.inference.writer import close_output, open_output, run_facts
from pancreas_mtl.interop.nnunet import import_nnunet
from pancreas_mtl.losses.segmentation import segmentation_loss
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import Case, Evidence, Plan, Triple

SQUARE = 3072  # edge of the matrices whose product is the hardware's limit
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICE = torch.device(os.environ.get("BENCHMARK_DEVICE", "cpu"))


class CountedEngine:
    """An engine that counts the voxels and the seconds that go through it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.voxels, self.seconds = 0, 0.0

    def __getattr__(self, name: str) -> Any:
        """What it does not do itself, the engine does."""
        return getattr(self._engine, name)

    def __call__(self, images: Tensor) -> tuple[Tensor, Evidence]:
        """The engine's answer."""
        start_s = time.perf_counter()
        answer: tuple[Tensor, Evidence] = self._engine(images)
        _finish()
        self.seconds += time.perf_counter() - start_s
        self.voxels += images.numel()
        return answer


class Tasks:
    """What can be asked for; each answers with what there is to say beside the time."""

    def __init__(self) -> None:
        self.entries: dict[str, list[CacheEntry]] = {}  # by the folder of preprocessing

    def about(self) -> dict[str, Any]:
        """What else decides the speed."""
        return {"versions": {"torch": torch.__version__}, "threads": torch.get_num_threads()}

    def import_model(
        self, folder: str, fold: int | str, checkpoint: str, bundle: str
    ) -> dict[str, Any]:
        """The rival's weights as a bundle."""
        import_nnunet(Path(folder), fold, checkpoint, Path(bundle), overwrite=True)
        return {}

    def load(
        self, bundle: str, preset: PresetName, engine: str, precision: Precision
    ) -> dict[str, Any]:
        """Load a bundle as predict.py does."""
        self.predictor = Predictor.from_bundle(
            bundle, preset=preset, engine=engine, precision=precision, device=str(DEVICE)
        )
        self.counted = CountedEngine(self.predictor.engines[0])
        self.predictor.engines = [self.counted]
        self.preset = self.predictor.preset
        return {"precision": self.counted.precision}

    def predict(self, inputs: str, output_dir: str, mirror: bool) -> dict[str, Any]:
        """A folder of images, as predict.py does; seconds per stage overlap."""
        self.predictor.preset = self.preset if mirror else replace(self.preset, mirror_axes=())
        self.counted.voxels, self.counted.seconds = 0, 0.0
        open_output(Path(output_dir), "benchmark", overwrite=True)
        sources = [nifti_source(path) for path in find_images(Path(inputs))]
        records = predict_cases(self.predictor, sources, Path(output_dir))
        close_output(Path(output_dir), records, run_facts(self.predictor, {}))
        if failed := [record.error for record in records if record.error]:
            raise RuntimeError(failed[0])
        stages: dict[str, float] = {}
        for record in records:
            for stage, seconds in record.seconds.items():
                stages[stage] = stages.get(stage, 0.0) + seconds
        stages["passes"] = self.counted.seconds  # the network alone, within the stage `network`
        return {"stages": stages, "voxels": self.counted.voxels, **_gpu_memory()}

    def limit(self) -> dict[str, Any]:
        """GFLOP/s of large matrix products in the engine's precision; GFLOP of the network.

        On a GPU many products are timed together, with TF32 where convolutions have it.
        """
        dtype, count = DTYPES[self.counted.precision], 100 if DEVICE.type == "cuda" else 1
        a = torch.randn(SQUARE, SQUARE).to(DEVICE, dtype)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32

        def multiply() -> None:
            for _ in range(count):
                a @ a

        best = min(_seconds(multiply) for _ in range(4))  # the first one warms up
        rate = 2 * SQUARE**3 * count / best / 1e9
        return {"gflop_per_s": rate, "gflop_per_vox": self._gflop_per_vox()}

    def preprocess(
        self, image: str, mask: str, folder: str, plan: dict[str, Any]
    ) -> dict[str, Any]:
        """One case from files to the cache, checksum included."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        case = Case(Path(mask).name.removesuffix(".nii.gz"), Path(image), Path(mask), subtype=0)
        entry = preprocess_case(case, plan=plan_from(plan), cache_dir=Path(folder))
        self.entries.setdefault(folder, []).append(entry)
        return {"image": str(entry.path)}

    def open_patches(
        self, folder: str, plan: dict[str, Any], augment: dict[str, float]
    ) -> dict[str, Any]:
        """The loader of training over what was preprocessed into a folder, in this one process."""
        mine = plan_from(plan)
        self.patches = _batches(self.entries[folder], mine)
        self.augment = Augment(
            AugmentConfig(**augment), patch_size=mine.patch_size, spacing_mm=mine.spacing_mm
        )
        return {}

    def read_patches(self, batches: int) -> dict[str, Any]:
        """Augmented batches, one after the other, on one core."""
        torch.set_num_threads(1)
        for _ in range(batches):
            self.augment(next(self.patches))
        return {}

    def open_step(self, plan: dict[str, Any]) -> dict[str, Any]:
        """The rival's very network, and one batch of random patches."""
        torch.backends.cudnn.benchmark = True  # as conf/trainer says
        mine = plan_from(plan)
        self.network = MultitaskUNet(mine, NetworkConfig(head="none", stages=(0,))).to(DEVICE)
        self.precision = choose_precision(DEVICE, "auto")
        self.scaler = torch.amp.GradScaler(DEVICE.type, enabled=self.precision == "fp16")
        self.averaged = AveragedModel(self.network)
        self.optimizer = AdamW(self.network.parameters(), lr=1e-3)
        shape = (mine.batch_size, 1, *mine.patch_size)
        rng = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 3, shape, generator=rng, dtype=torch.int16)
        self.batch = torch.randn(shape, generator=rng), labels
        return {"precision": self.precision}

    def step(self) -> dict[str, Any]:
        """One step of training, with the average of the weights."""
        image, mask = (one.to(DEVICE, non_blocking=True) for one in self.batch)
        self.optimizer.zero_grad(set_to_none=True)
        dtype = DTYPES[self.precision]
        with torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype != torch.float32):
            output = self.network(image)
        loss = segmentation_loss(output.segmentation, mask)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.averaged.update_parameters(self.network)
        return {"loss": float(loss.detach()), **_gpu_memory()}

    def loading(self, cases: int, batches: int) -> dict[str, Any]:
        """Read batches from so many cached cases; the memory that it still holds at the end."""
        shape: Triple = (32, 64, 96)
        nowhere = np.zeros((0, 3), np.int32)
        with tempfile.TemporaryDirectory() as folder:
            entries = []
            for index in range(cases):
                path = Path(folder, f"{index}.npy")
                np.save(path, np.full((2, *shape), index % 2, np.float16))
                entries.append(CacheEntry(path.stem, path, shape, 0, True, 1, nowhere, nowhere))
            sampler = PatchSampler(entries, batch_size=2, steps=batches, seed=0)
            data = PatchDataset(entries, patch_size=(32, 64, 64))
            gc.collect()
            before = psutil.Process().memory_full_info().uss
            read_s = _seconds(lambda: list(DataLoader(data, batch_sampler=sampler)) and None)
            held = psutil.Process().memory_full_info().uss - before
        return {"read_s": read_s, "held_mb": held / 1e6}

    def _gflop_per_vox(self) -> float:
        """Of one pass of the network; convolutions alone, so it is the same at every size."""
        plan = self.predictor.bundles[0].plan
        size = [2 * n for n in np.prod(plan.strides, axis=0).tolist()]
        network = self.predictor.bundles[0].network
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            network.window(torch.zeros(1, 1, *size, device=DEVICE))
        return counter.get_total_flops() / float(np.prod(size)) / 1e9


def _batches(entries: list[CacheEntry], plan: Plan) -> Any:
    """Batches of training without end."""
    size = read_size(plan.patch_size, SamplingConfig().read_margin)
    epoch = 0
    while True:
        sampler = PatchSampler(entries, batch_size=plan.batch_size, steps=100, seed=epoch)
        data = PatchDataset(entries, patch_size=plan.patch_size, read_size=size)
        yield from DataLoader(data, batch_sampler=sampler)
        epoch += 1


def _finish() -> None:
    """Wait for the GPU, where there is one."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _gpu_memory() -> dict[str, float]:
    """The most that its tensors took on the GPU since the last time, where there is one."""
    if DEVICE.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return {"gpu_mb": peak / 1e6}


def _seconds(run: Any) -> float:
    start_s = time.perf_counter()
    run()
    _finish()
    return time.perf_counter() - start_s


def main() -> None:
    """Do tasks as they come; what is printed goes to the log."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if DEVICE.type == "cuda":
        torch.cuda.set_device(DEVICE)
    tasks = Tasks()
    public = [name for name in dir(Tasks) if not name.startswith("_")]
    serve({name: getattr(tasks, name) for name in public}, sys.stdin, answers)


if __name__ == "__main__":
    main()
