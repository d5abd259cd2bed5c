"""The LightningModule on a network of a few hundred weights; real Trainer, no files."""

import copy
import time
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader

from pancreas_mtl.benchmarks.inputs import QUIZ_PLAN
from pancreas_mtl.errors import TrainingError
from pancreas_mtl.losses.joint import LossConfig
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.training.last_checkpoint import ResumableEarlyStopping
from pancreas_mtl.training.module import MultitaskModule, OptimizerConfig, guide
from pancreas_mtl.types import UNKNOWN, Batch


class Patches(torch.utils.data.Dataset):
    """A bright box is the lesion; the subtype is its brightness."""

    def __init__(self, count=8, size=(8, 16, 16)):
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn((1, *self.size), generator=generator) * 0.1
        mask = torch.zeros((1, *self.size), dtype=torch.int16)
        mask[:, 2:6, 3:12, 3:12], mask[:, 3:5, 5:9, 5:9] = 1, 2
        image += mask * (1 + index % 3)
        return Batch(
            image,
            mask,
            torch.tensor(index % 3),
            (mask == 2).sum().float(),
            torch.tensor(index),
            f"case{index}",
        )


def make(plan, **changes):
    torch.manual_seed(0)
    return MultitaskModule(
        MultitaskUNet(plan, NetworkConfig(stages=(0, 1), dropout=0.0)),
        plan=plan,
        augment=lambda batch: batch,
        loss=LossConfig(ramp=0),
        optimizer=OptimizerConfig(**{"lr": 1e-2, "head_lr": 1e-2, "warmup_steps": 1} | changes),
        score_weights={"whole_pancreas_dsc": 1.0, "macro_f1": 1.0},
    )


def fit(module, tmp_path, *, epochs=1, train=None, ckpt_path=None, **changes):
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
        gradient_clip_val=5.0,
        **{"accelerator": "cpu"} | changes,
    )
    train = train or DataLoader(Patches(), batch_size=2)
    validation = DataLoader(Patches(3), batch_size=1)
    trainer.fit(module, train, validation, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.slow
def test_learns_and_reports(plan, tmp_path):
    wide = replace(plan, channels=(16, 32, 32))
    metrics = fit(make(wide, ema=0.5), tmp_path, epochs=10).callback_metrics
    assert metrics["train/segmentation_epoch"] < 0.8
    assert metrics["val/whole_pancreas_dsc"] > 0.6
    for name in ("val/score", "val/lesion_dsc", "val/macro_f1", "val/classes_predicted"):
        assert 0 <= metrics[name] <= 3


def test_head_has_a_group_of_its_own_and_every_weight_is_in_one(plan, tmp_path):
    module = make(plan, lr=1e-2, head_lr=1e-3)
    trainer = fit(module, tmp_path)
    encoder, decoder, head = trainer.optimizers[0].param_groups
    assert [one["initial_lr"] for one in (encoder, decoder, head)] == [1e-2, 1e-2, 1e-3]
    assert {id(p) for p in head["params"]} == {
        id(p) for p in module.network.subtype_head.parameters()
    }
    grouped = sum(len(one["params"]) for one in (encoder, decoder, head))
    assert grouped == len(list(module.network.parameters()))


def test_early_stopping_goes_on_counting_after_a_resume(plan, tmp_path):
    def run(epochs, **more):
        stopping = ResumableEarlyStopping("val/score", mode="max", patience=3, min_delta=10.0)
        short = {"limit_train_batches": 1, "limit_val_batches": 1}
        trainer = fit(make(plan), tmp_path, epochs=epochs, callbacks=[stopping], **short, **more)
        return trainer, stopping

    trainer, before = run(3)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert before.wait_count == 2  # the first validation was the best so far
    trainer, after = run(9, ckpt_path=tmp_path / "x.ckpt")
    assert after.best_score == before.best_score
    assert trainer.current_epoch == 4


class Poisoned(Patches):
    def __getitem__(self, index):
        batch = super().__getitem__(index)
        return batch._replace(image=batch.image * float("nan")) if index == 2 else batch


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted(plan, tmp_path, caplog):
    module = make(plan)
    fit(module, tmp_path, train=DataLoader(Poisoned(), batch_size=2))
    assert int(module.skipped) == 1
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert "case2, case3" in caplog.text


def test_the_skips_of_grad_scaler_are_counted_and_its_factor_is_logged(plan, tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    module = make(plan)
    trainer = fit(
        module,
        tmp_path,
        train=DataLoader(Poisoned(), batch_size=2),
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    assert int(module.skipped) == 1
    assert trainer.callback_metrics["train/skipped_steps"] == 1
    assert trainer.callback_metrics["train/loss_scale"] == 512


def test_too_many_skipped_steps_stop_with_the_remedy(plan, tmp_path):
    class AllBad(Patches):
        def __getitem__(self, index):
            batch = super().__getitem__(index)
            return batch._replace(image=batch.image * float("inf"))

    message = r"3 steps of this run had a loss .*cases case\d.*lower optimizer.lr"
    with pytest.raises(TrainingError, match=message):
        fit(make(plan, max_bad_losses=2), tmp_path, train=DataLoader(AllBad(), batch_size=2))


def test_a_case_that_is_bad_once_an_epoch_is_not_skipped_for_ever(plan, tmp_path):
    module = make(plan, max_bad_losses=2)
    with pytest.raises(TrainingError, match=r"3 steps of this run .* cases case2, case3: look"):
        fit(module, tmp_path, epochs=9, train=DataLoader(Poisoned(), batch_size=2))
    assert module.current_epoch == 2
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    resumed = make(plan)
    resumed.on_load_checkpoint(checkpoint)
    assert resumed._bad_losses == 3


def test_of_several_batches_a_step_the_bad_one_is_named(plan, tmp_path, caplog):
    module = make(plan)
    train = DataLoader(Poisoned(), batch_size=2)
    fit(module, tmp_path, train=train, accumulate_grad_batches=4)
    assert "loss not finite, step skipped (cases: case2, case3)" in caplog.text
    assert int(module.skipped) == 1


def test_averaged_weights_follow_and_start_at_the_network(plan, tmp_path):
    module = make(plan, ema=0.9)
    before = copy.deepcopy(module.network.state_dict())
    fit(module, tmp_path, epochs=2)
    for name, value in module.averaged.module.state_dict().items():
        lies_between = (value - before[name]).norm() <= (
            module.network.state_dict()[name] - before[name]
        ).norm() * 1.5
        assert lies_between, name
    moved = [not torch.equal(v, before[n]) for n, v in module.averaged.module.state_dict().items()]
    assert any(moved)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 1.0), (0.25, 0.5), (0.5, 0.0), (1.0, 0.0)])
def test_the_reference_guides_at_first_and_the_prediction_later(progress, share):
    torch.manual_seed(0)
    seed = torch.randint(2**62, (4000,))
    unused = torch.zeros(4000)
    mask = torch.ones(4000, 1, 1, 1, 1)
    batch = Batch(unused, mask, unused, unused, seed, [""] * 4000)
    given = guide(batch, progress)
    assert (given == 1).float().mean().item() == pytest.approx(share, abs=0.03)
    assert ((given == 1) | (given == UNKNOWN)).all()
    assert (given == guide(batch, progress)).all()


def test_missing_labels_train_without_harm(plan, tmp_path):
    class Partial(Patches):
        def __getitem__(self, index):
            batch = super().__getitem__(index)
            if index % 2:
                return batch._replace(subtype=torch.tensor(UNKNOWN))
            return batch._replace(
                mask=torch.full_like(batch.mask, UNKNOWN), lesion_vox=torch.tensor(0.0)
            )

    module = make(plan)
    fit(module, tmp_path, train=DataLoader(Partial(), batch_size=1))
    assert int(module.skipped) == 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_precisions_agree_after_three_steps(plan, tmp_path, precision):
    module = make(plan, ema=0.0)
    fit(module, tmp_path, precision=precision, limit_train_batches=3)
    reference = make(plan, ema=0.0)
    fit(reference, tmp_path, limit_train_batches=3)
    batch = torch.utils.data.default_collate([Patches()[0]])
    with torch.no_grad():
        a, b = (m.network.eval()(batch.image).segmentation[0] for m in (module, reference))
    assert (a - b).abs().mean() < 0.1


GPU_PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]
gpu_alone = {"accelerator": "gpu", "devices": 1}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", GPU_PRECISIONS)
def test_three_steps_on_a_gpu_agree_with_fp32(plan, tmp_path, precision):
    module = make(plan, ema=0.0)
    trainer = fit(module, tmp_path, precision=precision, limit_train_batches=3, **gpu_alone)
    assert torch.isfinite(trainer.callback_metrics["train/segmentation_epoch"])
    assert int(module.skipped) == 0
    reference = make(plan, ema=0.0)
    fit(reference, tmp_path, limit_train_batches=3)
    image = torch.utils.data.default_collate([Patches()[0]]).image
    with torch.no_grad():
        a, b = (m.cpu().network.eval()(image).segmentation[0] for m in (module, reference))
    assert (a - b).abs().mean() < 0.1


class Stopwatch(pl.Callback):
    """When each step ended, once the GPU was done with it."""

    def __init__(self):
        self.ends_s = []

    def on_train_batch_end(self, *_):
        torch.cuda.synchronize()
        self.ends_s.append(time.perf_counter())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", GPU_PRECISIONS)
def test_throughput_of_training_on_a_gpu(tmp_path, precision):
    watch, module = Stopwatch(), make(QUIZ_PLAN)
    pair = [Patches(size=QUIZ_PLAN.patch_size)[index] for index in (0, 1)]
    torch.cuda.reset_peak_memory_stats()
    fit(
        module,
        tmp_path,
        train=DataLoader(30 * pair, batch_size=2, pin_memory=True),
        precision=precision,
        callbacks=[watch],
        limit_val_batches=0,
        **gpu_alone,
    )
    assert int(module.skipped) < len(watch.ends_s)
    per_step_s = (watch.ends_s[-1] - watch.ends_s[9]) / (len(watch.ends_s) - 10)
    size = " x ".join(map(str, QUIZ_PLAN.patch_size))
    print(
        f"\n{torch.cuda.get_device_name()}, {precision}: {1 / per_step_s:.1f} steps of "
        f"{QUIZ_PLAN.batch_size} patches of {size} per second, "
        f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    )
