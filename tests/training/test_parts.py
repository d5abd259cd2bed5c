"""Schedules, callbacks, checkpoints and the scores of a validation epoch."""

import csv
import pickle
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel

from pancreas_mtl.errors import UsageError
from pancreas_mtl.training.callbacks import CollapseDetector, History, LastValidation
from pancreas_mtl.training.checkpoints import averaged_weights, read_checkpoint
from pancreas_mtl.training.last_checkpoint import LastCheckpoint, MovableCheckpoint
from pancreas_mtl.training.schedules import ema_decay, learning_rate_factor
from pancreas_mtl.training.validation import ValidationCase, validation_case, validation_scores
from pancreas_mtl.types import UNKNOWN, Batch

WEIGHTS = {"whole_pancreas_dsc": 0.25, "lesion_dsc": 0.25, "macro_f1": 0.5}


@pytest.mark.parametrize(("decay", "middle"), [("cosine", 0.5), ("poly", 0.5**0.9)])
def test_rate_rises_then_falls(decay, middle):
    def factor(step):
        return learning_rate_factor(step, total=110, warmup=10, decay=decay)

    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(10) == 1
    assert factor(60) == pytest.approx(middle)
    assert factor(109) == pytest.approx(factor(500))
    assert all(factor(step) > factor(step + 1) > 0 for step in range(10, 108))


def test_average_forgets_its_start_and_then_settles():
    assert ema_decay(0, 0.99) == pytest.approx(0.1)
    assert ema_decay(10**6, 0.99) == 0.99


def trainer(epoch, metrics):
    return SimpleNamespace(
        sanity_checking=False,
        current_epoch=epoch,
        global_step=10 * epoch,
        is_global_zero=True,
        callback_metrics={k: torch.tensor(v) for k, v in metrics.items()},
    )


def test_history_has_a_row_per_epoch_and_goes_on_after_a_resume(tmp_path):
    history = History(tmp_path / "metrics.csv")
    history.on_train_epoch_end(trainer(0, {"train/loss": 2.0, "train/loss_step": 9.0}), None)
    history.on_validation_end(trainer(1, {}), None)
    history.on_train_epoch_end(trainer(1, {"train/loss": 1.0, "val/score": 0.5}), None)
    resumed = History(tmp_path / "metrics.csv")
    resumed.load_state_dict(history.state_dict())
    resumed.on_validation_end(trainer(1, {}), None)
    resumed.on_train_epoch_end(trainer(1, {"train/loss": 0.9, "val/score": 0.6}), None)
    resumed.on_train_epoch_end(trainer(2, {"train/loss": 0.8, "val/score": 0.6}), None)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert next(iter(rows[0])) == "epoch"
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [row["train/loss"] for row in rows] == ["2", "0.9", "0.8"]
    assert [row["val/score"] for row in rows] == ["", "0.6", ""]  # 2 was not validated
    assert "train/loss_step" not in rows[0]


def test_a_run_that_was_moved_knows_its_best_checkpoint(tmp_path):
    first, moved = (
        MovableCheckpoint(dirpath=tmp_path / name, filename="best", monitor="val/score", mode="max")
        for name in ("old", "new")
    )
    best = str(tmp_path / "old" / "best.ckpt")
    first.best_model_path = first.kth_best_model_path = best
    first.best_model_score, first.best_k_models = torch.tensor(0.8), {best: torch.tensor(0.8)}
    moved.load_state_dict(first.state_dict())
    here = str(tmp_path / "new" / "best.ckpt")
    assert (moved.best_model_path, moved.kth_best_model_path) == (here, here)
    assert moved.best_k_models == {here: 0.8}
    assert not moved.check_monitor_top_k(
        SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool)), torch.tensor(0.5)
    )


@pytest.mark.parametrize(("epochs", "validated"), [(5, [3, 5]), (6, [3, 6]), (2, [2])])
def test_the_last_epoch_is_validated_whatever_the_interval(tmp_path, epochs, validated):
    seen = []

    class Watched(BoringModel):
        def on_validation_epoch_end(self):
            seen.append(self.current_epoch + 1)

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=2,
        limit_val_batches=1,
        check_val_every_n_epoch=3,
        num_sanity_val_steps=0,
        callbacks=[LastValidation()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Watched())
    assert seen == validated


def test_collapse_is_warned_of_once_after_its_patience(caplog):
    logged = {}
    module = SimpleNamespace(log=lambda name, value: logged.update({name: value}))
    detector = CollapseDetector(patience=2)

    def validate(classes):
        of_epoch = trainer(0, {"val/classes_predicted": classes})
        detector.on_validation_end(of_epoch, module)
        detector.on_train_epoch_end(of_epoch, module)

    for classes in (1.0, 2.0, 1.0, 1.0, 1.0):
        validate(classes)
    assert caplog.text.count("one subtype for every case") == 1
    assert logged["val/collapsed"] == 1
    resumed = CollapseDetector(patience=2)
    resumed.load_state_dict(detector.state_dict())
    assert resumed.epochs == 3
    validate(3.0)
    assert logged["val/collapsed"] == 0


def test_loggers_write_what_they_have_before_a_checkpoint_says_that_it_was_done(tmp_path):
    done = []
    logger = SimpleNamespace(save=lambda: done.append("logger"))
    trainer = SimpleNamespace(
        loggers=[logger],
        strategy=SimpleNamespace(reduce_boolean_decision=lambda mine, **_: mine),
        save_checkpoint=lambda path, weights_only: done.append(path.name),
    )
    LastCheckpoint(tmp_path / "last.ckpt").on_train_epoch_end(trainer, None)
    assert done == ["logger", "last.ckpt"]


def test_averaged_weights_by_their_own_names(tmp_path):
    state = {
        "averaged.module.a.weight": torch.ones(2),
        "network.a.weight": torch.zeros(2),
        "averaged.n_averaged": torch.tensor(3),
    }
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    assert list(averaged_weights(tmp_path / "x.ckpt")) == ["a.weight"]


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/pancreas_mtl_hacked", "w"))


@pytest.mark.parametrize(
    "content", [b"", b"noise", pickle.dumps({"state_dict": {}}), pickle.dumps(Evil())]
)
def test_what_is_no_checkpoint_is_refused_and_not_run(tmp_path, content):
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"last.ckpt: not a checkpoint of this project"):
        read_checkpoint(path)
    torch.save({"state_dict": {}, "callbacks": Evil()}, path)
    with pytest.raises(UsageError, match=r"last.ckpt: not a checkpoint"):
        read_checkpoint(path)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(UsageError, match="not found"):
        read_checkpoint(tmp_path / "best.ckpt")


def case(name, subtype, probabilities, whole=0.9, lesion=0.5):
    return ValidationCase(name, whole, whole, lesion, subtype, probabilities)


def test_scores_over_all_cases():
    cases = [
        case("a", 0, (0.8, 0.1, 0.1)),
        case("b", 1, (0.6, 0.3, 0.1)),
        case("c", 2, (0.1, 0.1, 0.8), whole=None, lesion=None),
        case("d", None, (1.0, 0.0, 0.0), whole=0.7, lesion=0.1),
    ]
    scores = validation_scores(cases, WEIGHTS)
    assert scores["whole_pancreas_dsc"] == pytest.approx((0.9 + 0.9 + 0.7) / 3)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert [scores[f"f1_subtype{s}"] for s in range(3)] == pytest.approx([2 / 3, 0, 1])
    assert scores["ece"] == pytest.approx((0.6 + 0.4) / 3)  # .6 is wrong, two at .8 are right
    assert scores["classes_predicted"] == 2
    assert scores["balanced_probability"] == pytest.approx((0.8 + 0.3 + 0.8) / 3)


def test_scores_without_subtypes_leave_the_term_out():
    scores = validation_scores([case("a", None, (1.0, 0.0, 0.0))], WEIGHTS)
    assert "macro_f1" not in scores
    assert scores["score"] == pytest.approx((0.9 + 0.5) / 2)


def test_a_case_without_mask_has_no_dsc():
    mask = torch.full((1, 1, 4, 4, 4), UNKNOWN)
    batch = Batch(mask, mask, torch.tensor([UNKNOWN]), torch.zeros(1), torch.zeros(1), ["a"])
    one = validation_case(batch, torch.zeros(4, 4, 4), torch.tensor([0.2, 0.3, 0.5]))
    assert one.whole_pancreas_dsc is one.pancreas_dsc is one.lesion_dsc is one.subtype is None
