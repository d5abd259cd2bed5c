"""What stock nnU-Net v2 does, when asked; runs in nnU-Net's environment, alone.

It calls nnU-Net's own classes as its commands call them, with their defaults,
on the device that BENCHMARK_DEVICE names in the environment, cpu or cuda.
"""

import json
import os
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

SCRATCH = os.environ.get("BENCHMARK_SCRATCH") or tempfile.mkdtemp()
os.environ.update({f"nnUNet_{part}": SCRATCH for part in ("raw", "preprocessed", "results")})

import numpy as np  # noqa: E402
import torch  # noqa: E402
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.preprocessing.preprocessors.default_preprocessor import (  # noqa: E402
    DefaultPreprocessor,
)
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader  # noqa: E402
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: E402

from pancreas_mtl.benchmarks.rival_plans import CONFIGURATION, DATASET, plans_of  # noqa: E402

DEVICE = torch.device(os.environ.get("BENCHMARK_DEVICE", "cpu"))


def trainer_of(plans: dict) -> nnUNetTrainer:
    """A trainer with network, optimiser and loss."""
    arguments = {**plans, "continue_training": False}
    trainer = nnUNetTrainer(arguments, CONFIGURATION, 0, DATASET, DEVICE)
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, enable_deep_supervision=True
    ).to(DEVICE)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.loss = trainer._build_loss()
    return trainer


def save_model(folder: Path, plans: dict, trainer: nnUNetTrainer) -> None:
    """The folder of a trained model."""
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans, indent=1) + "\n")
    (folder / "dataset.json").write_text(json.dumps(DATASET, indent=1) + "\n")
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    trainer.save_checkpoint(folder / "fold_0" / "checkpoint_final.pth")


class Tasks:
    """What can be asked for; each answers with what there is to say beside the time."""

    def about(self) -> dict:
        """What else decides the speed."""
        names = ("nnunetv2", "torch")
        return {"versions": {n: version(n) for n in names}, "threads": torch.get_num_threads()}

    def make_model(
        self, folder: str, plan: dict, cases: str, patch_size: list[int], minutes: float
    ) -> dict:
        """A model trained on these cases for so long; after no minute, its weights are random."""
        torch.manual_seed(0)
        trainer = trainer_of(plans_of(plan))
        if minutes:
            self.train(trainer, cases, {**plan, "patch_size": patch_size}, minutes)
        else:
            size = 2 * np.prod(plan["strides"], axis=0)  # twice what the deepest stage is coarser
            level_logits(trainer.network, size.tolist())
        save_model(Path(folder), plans_of(plan), trainer)
        return {}

    def train(self, trainer: nnUNetTrainer, cases: str, plan: dict, minutes: float) -> None:
        """Steps of its own trainer, by Adam and around labels, as SGD would need hours."""
        trainer.optimizer = torch.optim.AdamW(trainer.network.parameters(), lr=1e-3)
        end_s = time.monotonic() + 60 * minutes
        preprocessed = str(Path(cases, "preprocessed"))
        for mask in sorted(Path(cases, "masks").glob("*.nii.gz")):
            image = Path(cases, "images", mask.name.replace(".nii.gz", "_0000.nii.gz"))
            self.preprocess(str(image), str(mask), preprocessed, plan)
        self.open_patches(preprocessed, plan)
        self.patches.oversample_foreground_percent = 1.0
        while time.monotonic() < end_s:
            print("loss", trainer.train_step(next(self.patches))["loss"], flush=True)

    def load(self, folder: str, fold: int | str, checkpoint: str) -> dict:
        """Load a model as nnUNetv2_predict_from_modelfolder does."""
        self.predictor = nnUNetPredictor(device=DEVICE, allow_tqdm=False)
        self.predictor.initialize_from_trained_model_folder(folder, (fold,), checkpoint)
        network = self.predictor.predict_logits_from_preprocessed_data

        def timed(data: torch.Tensor) -> torch.Tensor:
            start_s = time.perf_counter()
            try:
                return network(data)
            finally:
                self.network_s += time.perf_counter() - start_s

        self.predictor.predict_logits_from_preprocessed_data = timed
        return {}

    def predict(self, inputs: str, output_dir: str, mirror: bool) -> dict:
        """A folder of images, with the processes that the command takes by default."""
        self.network_s = 0.0
        self.predictor.use_mirroring = mirror
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        self.predictor.predict_from_files(
            inputs, output_dir, num_processes_preprocessing=3, num_processes_segmentation_export=3
        )
        return {"stages": {"network": self.network_s}, **gpu_memory()}

    def preprocess(self, image: str, mask: str, folder: str, plan: dict) -> dict:
        """One case from files to what training reads."""
        plans = PlansManager(plans_of(plan))
        configuration = plans.get_configuration(CONFIGURATION)
        data, seg, properties = DefaultPreprocessor(verbose=False).run_case(
            [image], mask, plans, configuration, DATASET
        )
        case = str(Path(folder, Path(mask).name.removesuffix(".nii.gz")))
        Path(folder).mkdir(parents=True, exist_ok=True)
        for kind in ("", "_seg"):  # of a benchmark before; it does not write over them
            Path(f"{case}{kind}.b2nd").unlink(missing_ok=True)
        nnUNetDatasetBlosc2.save_case(data, seg, properties, case)
        return {}

    def image_of(self, folder: str, case: str) -> dict:
        """A preprocessed image as a file that the other side can read."""
        data, *_ = nnUNetDatasetBlosc2(folder).load_case(case)
        path = Path(folder, f"{case}_image.npy")
        np.save(path, np.asarray(data[0], dtype=np.float32))
        return {"image": str(path)}

    def open_patches(self, folder: str, plan: dict) -> dict:
        """The loader of training with its augmentation, in this one process."""
        trainer = trainer_of(plans_of(plan))
        settings = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        rotation, dummy_2d, size, mirror_axes = settings
        transforms = trainer.get_training_transforms(
            plan["patch_size"],
            rotation,
            trainer._get_deep_supervision_scales(),
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=[False],
            foreground_labels=trainer.label_manager.foreground_labels,
        )
        self.patches = nnUNetDataLoader(
            nnUNetDatasetBlosc2(folder),
            plan["batch_size"],
            size,
            plan["patch_size"],
            trainer.label_manager,
            oversample_foreground_percent=trainer.oversample_foreground_percent,
            transforms=transforms,
        )
        return {}

    def read_patches(self, batches: int) -> dict:
        """Augmented batches, one after the other, on one core."""
        torch.set_num_threads(1)
        for _ in range(batches):
            next(self.patches)
        return {}

    def open_step(self, plan: dict) -> dict:
        """A trainer and one batch of random patches."""
        torch.backends.cudnn.benchmark = True  # as nnUNetv2_train does
        self.trainer = trainer_of(plans_of(plan))
        if self.trainer._do_i_compile():  # as its own `initialize` does: on CUDA
            self.trainer.network = torch.compile(self.trainer.network)
        shape = (plan["batch_size"], 1, *plan["patch_size"])
        rng = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 3, shape, generator=rng)
        target = [
            torch.nn.functional.interpolate(labels.float(), scale_factor=tuple(scale)).to(
                torch.int16
            )
            for scale in self.trainer._get_deep_supervision_scales()
        ]
        self.batch = {"data": torch.randn(shape, generator=rng), "target": target}
        return {}

    def step(self) -> dict:
        """One step of training."""
        return {"loss": float(self.trainer.train_step(self.batch)["loss"]), **gpu_memory()}


def gpu_memory() -> dict:
    """The most that its tensors took on the GPU since the last time, where there is one."""
    if DEVICE.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return {"gpu_mb": peak / 1e6}


@torch.no_grad()
def level_logits(network: Any, size: list[int]) -> None:
    """Random norms and biases; no label is the largest everywhere."""
    for name, parameter in network.named_parameters():
        if name.endswith((".norm.weight", ".bias")):
            parameter.uniform_(0.5, 1.5)
    logits = network(torch.randn(1, 1, *size, device=DEVICE))[0]  # the finest
    network.decoder.seg_layers[-1].bias -= logits.mean(dim=(0, 2, 3, 4))


def main() -> None:
    """Do tasks as they come; what nnU-Net prints goes to the log."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if DEVICE.type == "cuda":  # the threads of nnUNetv2_predict and nnUNetv2_train
        torch.cuda.set_device(DEVICE)
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
    else:
        torch.set_num_threads(os.cpu_count() or 1)
    tasks = Tasks()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(tasks, request.pop("task"))(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
