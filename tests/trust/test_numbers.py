"""Losses stay finite on batches that real data never promised not to hold."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch.utils.data import DataLoader
from trust.faults import PLAN, ct, save_ct

from pancreas_mtl.data.augment import Augment, AugmentConfig
from pancreas_mtl.data.preprocess import preprocess
from pancreas_mtl.losses.joint import LossConfig, joint_loss
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.training.module import MultitaskModule, OptimizerConfig
from pancreas_mtl.types import UNKNOWN, Batch, Case, Label

pytestmark = pytest.mark.slow

CONF = Path(__file__).resolve().parents[2] / "conf" / "augment"
SHAPE = (2, 1, *PLAN.patch_size)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def noise(scale=1.0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * scale


def box(label):
    mask = torch.zeros(SHAPE, dtype=torch.int16)
    mask[:, :, 2:6, 4:12, 4:12] = label
    return mask


def batch(image=None, mask=None, subtype=(0, 1), lesion_vox=None):
    mask = box(1) if mask is None else mask
    inside = (mask == Label.LESION).flatten(1).sum(1).float()
    return Batch(
        image=noise() if image is None else image,
        mask=mask,
        subtype=torch.tensor(subtype),
        lesion_vox=inside if lesion_vox is None else torch.tensor(lesion_vox),
        seed=torch.tensor([2, 4]),
        name=["a", "b"],
    )


def one_voxel(label):
    mask = torch.zeros(SHAPE, dtype=torch.int16)
    mask[:, :, 0, 0, 0] = label
    return mask


BATCHES = {
    "no pancreas at all": batch(mask=box(0)),
    "pancreas everywhere": batch(mask=torch.full(SHAPE, 1, dtype=torch.int16)),
    "lesion everywhere": batch(mask=torch.full(SHAPE, 2, dtype=torch.int16)),
    "lesion without pancreas": batch(mask=box(2)),
    "lesion of one voxel in a corner": batch(mask=one_voxel(2)),
    "a lesion elsewhere": batch(lesion_vox=(1e6, 1e6)),
    "no mask": batch(mask=torch.full(SHAPE, UNKNOWN, dtype=torch.int16), lesion_vox=(0.0, 0.0)),
    "no subtype": batch(subtype=(UNKNOWN, UNKNOWN)),
    "nothing known": batch(
        mask=torch.full(SHAPE, UNKNOWN, dtype=torch.int16), subtype=(UNKNOWN, UNKNOWN)
    ),
    "one class only": batch(subtype=(2, 2)),
    "constant image": batch(image=torch.zeros(SHAPE)),
    "constant and bright": batch(image=torch.full(SHAPE, 3.8)),
    "one bright voxel": batch(image=one_voxel(4).float()),
    "tiny contrast": batch(image=noise(1e-6)),
    "ten times the window": batch(image=noise(30.0)),
}


@pytest.fixture(scope="module", params=["gap", "attention", "lesion"])
def network(request):
    torch.manual_seed(0)
    return MultitaskUNet(PLAN, NetworkConfig(head=request.param, stages=(0, 1), dropout=0.0))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", BATCHES)
def test_loss_and_gradients_are_finite(network, kind, precision):
    dtype, given = PRECISIONS[precision], BATCHES[kind]
    network.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        output = network(given.image, given.mask)
        parts = joint_loss(output, given, LossConfig(), 1.0)
    parts.total.backward()
    assert parts.total.dtype == torch.float32
    for name, value in parts._asdict().items():
        assert torch.isfinite(value), name
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and precision != "bf16":  # see below
            assert torch.isfinite(parameter.grad).all(), name


class Losses(pl.Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(outputs["loss"].item())


def test_a_training_in_bf16_survives_all_of_them(tmp_path):
    """Through the trainer: one step after the other, so weights that one spoils spoil the next."""
    torch.manual_seed(0)
    module = MultitaskModule(
        MultitaskUNet(PLAN, NetworkConfig(stages=(0, 1), dropout=0.0)),
        plan=PLAN,
        augment=lambda batch: batch,
        loss=LossConfig(),
        optimizer=OptimizerConfig(warmup_steps=1),
        score_weights={"whole_pancreas_dsc": 1.0},
    )
    losses = Losses()
    trainer = pl.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_epochs=2,
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(list(BATCHES.values()), batch_size=None))
    assert len(losses.found) == 2 * len(BATCHES)
    assert np.isfinite(losses.found).all()
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


# On some CPUs, gradients of bf16 convolutions on tiny feature maps are at random not finite; the
# step is then skipped, which tests/training/test_module.py shows.


@pytest.mark.parametrize("value", [30_000, 32767, -32768])
def test_an_implant_never_reaches_the_network(tmp_path, value):
    array = ct((20, 18, 10))
    array[5:9, 5:9, 3:6] = value
    path = save_ct(tmp_path / "a_0000.nii.gz", array)
    labels = np.zeros(array.shape, np.uint8)
    labels[4:12, 4:12, 2:8] = 1
    mask = save_ct(tmp_path / "a.nii.gz", labels)
    (entry,) = preprocess([Case("a", path, mask, 1)], PLAN, tmp_path / "cache", workers=1)
    low, high = (PLAN.intensity.low_hu, PLAN.intensity.high_hu)
    bound = max(abs(low - PLAN.intensity.mean_hu), abs(high - PLAN.intensity.mean_hu))
    assert np.abs(entry.open()[0].astype(np.float32)).max() <= bound / PLAN.intensity.std_hu + 0.01
    assert np.isfinite(entry.open()).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strength", ["standard", "strong"])
def test_augmentation_keeps_extreme_images_finite(strength, seed):
    values = yaml.safe_load((CONF / f"{strength}.yaml").read_text())
    config = AugmentConfig(**{k: 1.0 if k.endswith("_p") else v for k, v in values.items()})
    augment = Augment(config, patch_size=PLAN.patch_size, spacing_mm=PLAN.spacing_mm)
    for kind in ("constant image", "one bright voxel", "ten times the window", "no mask"):
        given = BATCHES[kind]._replace(seed=torch.tensor([seed, seed + 100]))
        answer = augment(given)
        assert torch.isfinite(answer.image).all(), kind
        assert set(answer.mask.unique().tolist()) <= {UNKNOWN, 0, 1, 2}
