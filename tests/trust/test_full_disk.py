"""A full disk at every kind of write: one line, nothing half-written, and the next run finishes."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from trainings import OVERRIDES
from trust.faults import MODEL, PLAN, content, ct, largest_file, predict, save_ct

from pancreas_mtl.data.audit import audit_cases
from pancreas_mtl.data.cases import read_cases
from pancreas_mtl.data.files import write_csv, write_json
from pancreas_mtl.data.images import read_image, write_mask, write_volume
from pancreas_mtl.data.phantom import write_dataset
from pancreas_mtl.data.plan import save_plan
from pancreas_mtl.data.preprocess import preprocess_case
from pancreas_mtl.data.repair import write_repaired
from pancreas_mtl.data.splits import Split, Splits, save_splits
from pancreas_mtl.errors import CaseError
from pancreas_mtl.evaluation.report import write_report
from pancreas_mtl.inference.bundle import Calibration, save_bundle, save_calibration
from pancreas_mtl.inference.pictures import mosaic, save_png
from pancreas_mtl.inference.writer import CaseRecord, append, close_output, open_output
from pancreas_mtl.interop.convert import convert_dataset
from pancreas_mtl.training.last_checkpoint import AtomicCheckpointIO
from pancreas_mtl.types import Case

pytestmark = pytest.mark.slow

LABELS = np.random.default_rng(0).integers(0, 3, (6, 9, 10)).astype(np.uint8)
RECORD = CaseRecord("a", "a.nii.gz", (0.2, 0.3, 0.5), 0.1)


@pytest.fixture
def image(tmp_path):
    return read_image(save_ct(tmp_path / "source" / "a_0000.nii.gz"))


@pytest.fixture
def quiz(tmp_path):
    for split, subtype in (("train", 0), ("train", 1), ("validation", 2)):
        name = f"quiz_{subtype}_00{subtype}"
        folder = tmp_path / "source" / split / f"subtype{subtype}"
        save_ct(folder / f"{name}_0000.nii.gz", ct(seed=subtype))
        save_ct(folder / f"{name}.nii.gz", LABELS.transpose(2, 1, 0).astype(np.float32))
    return tmp_path / "source"


Write = Callable[[Path], object]


def mask(image, folder):
    write_mask(folder / "a.nii.gz", LABELS, image.source)


def volume(image, folder):
    write_volume(folder / "a.nii", image.array, image.source)


def cache(image, folder):
    path = folder.parent / "source" / "a_0000.nii.gz"
    preprocess_case(Case("a", path), plan=PLAN, cache_dir=folder)


def picture(image, folder):
    save_png(mosaic(image.array, LABELS, image.spacing_mm), folder / "a.png")


def journal(image, folder):
    append(folder, RECORD)


def tables(image, folder):
    close_output(folder, [RECORD], {})


def plan(image, folder):
    save_plan(PLAN, folder / "plan.json")


def splits(image, folder):
    save_splits(Splits((Split(("a",) * 30, ("b",)),), None), folder / "splits.json")


def bundle(image, folder):
    save_bundle(folder / "bundle", {"x": torch.zeros(99)}, PLAN, {"model": MODEL})


def calibration(image, folder):
    save_calibration(folder, Calibration())


def document(image, folder):
    write_json(folder / "metrics.json", {"cases": ["a" * 99]})


def table(image, folder):
    write_csv(folder / "metrics.csv", ["epoch"], [[n] for n in range(99)])


def checkpoint(image, folder):
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(10**5)}, folder / "last.ckpt")


WRITES = [mask, volume, cache, picture, journal, tables, plan, splits, bundle, calibration,
          document, table, checkpoint]  # fmt: skip


@pytest.mark.parametrize("before", ["nothing", "something"])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_write_fails_in_one_line_and_leaves_what_was_there(image, tmp_path, write, before):
    folder = tmp_path / "out"
    open_output(folder, "x", overwrite=False)
    write = partial(write, image)
    if before == "something":
        write(folder)
    if write.func is cache and before == "something":
        next(folder.glob("*.json")).unlink()  # so that there is something to do
    if write.func is splits:
        (folder / "splits.json").unlink(missing_ok=True)  # the same again would not be written
    if write.func is tables:
        (folder / "journal.jsonl").touch()
    there = content(folder)
    with largest_file(20), pytest.raises(CaseError) as caught:
        write(folder)
    assert "cannot be written (" in str(caught.value)
    assert ": free space there, or write elsewhere" in str(caught.value)
    assert str(folder) in str(caught.value)
    assert content(folder) == there
    write(folder)  # and once there is room again, it succeeds


def test_a_cache_entry_is_whole_after_the_second_try(image, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    with largest_file(20), pytest.raises(CaseError):
        cache(image, folder)
    cache(image, folder)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npy"]


def test_a_phantom_dataset_is_finished_by_the_second_call(tmp_path):
    make = partial(write_dataset, num_train=1, num_validation=0, num_test=0, size="small")
    with largest_file(20_000), pytest.raises(CaseError, match=r"case 0: .*cannot be written"):
        make(tmp_path / "a")
    make(tmp_path / "a")
    make(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_repaired_or_converted_copy_is_there_whole_or_not_at_all(quiz, tmp_path):
    report = audit_cases(read_cases("quiz", quiz), workers=1)
    repair = partial(write_repaired, report, quiz, tmp_path / "copy", workers=1)
    convert = partial(convert_dataset, quiz, tmp_path / "copy", source="quiz", target="nnunet")
    before = content(tmp_path)
    for work in (repair, convert):
        with largest_file(100), pytest.raises(CaseError, match="cannot be written"):
            work()
        assert content(tmp_path) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_report_is_there_whole_or_not_at_all(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,train/loss\n0,1\n1,0.5\n")
    with largest_file(1000), pytest.raises(CaseError, match=r"report\.html cannot be written"):
        write_report([tmp_path], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


LARGEST = {"journal": 10, "masks": 130, "run.json": 900}


@pytest.mark.parametrize("what", LARGEST)
def test_a_prediction_that_met_a_full_disk_goes_on_and_equals_an_undisturbed_one(
    model, tmp_path, what, caplog
):
    for seed, name in enumerate(("a", "b")):
        save_ct(tmp_path / "in" / f"{name}.nii.gz", ct(seed=seed))
    with largest_file(LARGEST[what]):
        disturbed = predict(model, tmp_path / "in", tmp_path / "out").finished
    assert disturbed.code == 1
    assert "cannot be written (File too large): free space there" in disturbed.last_line
    assert not (tmp_path / "out" / "run.json").exists()
    again = predict(model, tmp_path / "in", tmp_path / "out")
    assert again.finished.code == 0, again.finished.stderr
    calm = predict(model, tmp_path / "in", tmp_path / "calm")
    assert unlike_time(again) == unlike_time(calm)


@pytest.mark.parametrize("what", ["npy", "ckpt"])
def test_a_training_that_met_a_full_disk_goes_on(tiny_quiz, tmp_path, what):
    run, places = tmp_path / "run", [f"data.root={tiny_quiz}", f"paths.outputs={tmp_path}"]
    if what == "ckpt":  # so the cache is there, and the checkpoint is the first large file
        prepared = [f"output_dir={tmp_path / 'prepared'}", "workers=1", *OVERRIDES[:5]]
        assert call("pancreas_mtl.preprocess", *places, *prepared).code == 0
    keys = [*OVERRIDES, *places, "trainer.max_epochs=1", f"output_dir={run}"]
    with largest_file(50_000):
        disturbed = call("train", *keys)
    assert disturbed.code == 1
    message = rf"\.{what} cannot be written \(.*\): free space there, or write elsewhere"
    assert re.search(message, disturbed.last_line), disturbed.last_line
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed"
    assert re.search(message, record["error"])
    assert not list(tmp_path.rglob(".*.tmp"))
    if what == "ckpt":
        again = call("train", *keys, "resume=true")
        assert again.code == 0, again.stderr
        assert (run / "bundle" / "model.safetensors").exists()


def unlike_time(predicted):
    """All files of a prediction, without what the clock and the folder's name decide."""
    files = content(predicted.folder)
    del files["run.json"]
    cases = [{**case, "seconds": None} for case in predicted.record["cases"]]
    return files, cases, predicted.failures


def test_a_record_is_never_lost_in_between(tmp_path):
    open_output(tmp_path, "x", overwrite=False)
    append(tmp_path, RECORD)
    with largest_file(150), pytest.raises(CaseError):
        append(tmp_path, replace(RECORD, name="b"))
    append(tmp_path, replace(RECORD, name="c"))
    found = open_output(tmp_path, "x", overwrite=False)
    assert [record.name for record in found] == ["a", "c"]
