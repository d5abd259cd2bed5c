"""Make the small nnU-Net models with random weights, and nnU-Net's answers, for the tests.

Runs in an environment with nnunetv2 2.8.1 (`make bench-nnunet-env`), never in this project's own:

    .nnunet/bin/python tests/interop/make_nnunet_pair.py tests/interop/nnunet
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from pancreas_mtl.benchmarks.nnunet_side import Tasks, level_logits, save_model, trainer_of
from pancreas_mtl.benchmarks.rival_plans import plans_of

COMMON = {
    "batch_size": 2,
    "channels": [4, 6, 8],
    "intensity": {"mean_hu": 74.0, "std_hu": 44.0, "low_hu": -56.0, "high_hu": 180.0},
}
MODELS = {
    "isotropic": {
        "plan": {
            **COMMON,
            "spacing_mm": [1.5, 1.5, 1.5],
            "patch_size": [16, 16, 16],
            "kernels": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        },
        "transpose_forward": (0, 1, 2),
        "spacing_mm": [2.0, 1.3, 1.1],  # of the image
        "shape": (14, 22, 25),
    },
    # nnU-Net puts the coarsest axis first; here that is the image's last
    "anisotropic": {
        "plan": {
            **COMMON,
            "spacing_mm": [5.0, 1.2, 1.0],
            "patch_size": [8, 16, 16],
            "kernels": [[1, 3, 3], [1, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        },
        "transpose_forward": (2, 0, 1),
        "spacing_mm": [1.1, 0.9, 4.0],
        "shape": (21, 24, 11),
    },
}


def write_model(folder, model):
    """As nnU-Net's trainer leaves it after an epoch, with numpy scalars in its log."""
    plans = plans_of(model["plan"], model["transpose_forward"])
    trainer = trainer_of(plans)
    level_logits(trainer.network, model["plan"]["patch_size"])
    trainer.logger.log("ema_fg_dice", np.float64(0.5), 0)
    trainer.logger.log("train_losses", np.float32(0.25), 0)
    trainer._best_ema = np.float64(0.5)
    save_model(folder, plans, trainer)


def write_answers(folder, model):
    """One window through the network, and one image from HU to labels with nnU-Net's defaults."""
    tasks = Tasks()
    tasks.load(str(folder), 0, "checkpoint_final.pth")
    tasks.network_s = 0.0
    rng = np.random.default_rng(0)
    window = torch.from_numpy(rng.normal(size=(1, 1, *model["plan"]["patch_size"])).astype("f4"))
    with torch.inference_mode():
        logits = tasks.predictor.network.eval()(window)
    back = [model["transpose_forward"].index(axis) for axis in range(3)]
    image_hu = rng.normal(60, 60, model["shape"]).round().astype(np.int16)
    labels = tasks.predictor.predict_single_npy_array(
        image_hu[None].astype(np.float32), {"spacing": model["spacing_mm"]}
    )
    np.savez_compressed(
        folder / "answers.npz",
        window=window[0, 0].numpy().transpose(back),  # in the image's axes
        logits=logits[0].numpy().transpose(0, *(axis + 1 for axis in back)),
        image_hu=image_hu,
        spacing_mm=np.array(model["spacing_mm"]),
        labels=labels.astype(np.uint8),
    )


if __name__ == "__main__":
    for name, model in MODELS.items():
        torch.manual_seed(0)
        write_model(Path(sys.argv[1], name), model)
        write_answers(Path(sys.argv[1], name), model)
