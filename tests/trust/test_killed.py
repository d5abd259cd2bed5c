"""Work that is killed at any moment is finished by the next run, with the same result.

A forked child does the work and kills itself, as `kill -9` would, at its first, second, ... rename
of a finished file, just before it or just after it; between renames nothing changes on the disk
but temporary files. Training has tests of its own.
"""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call
from hydra import compose, initialize_config_dir
from trust.faults import MODEL, PLAN, content, ct, predict, save_ct

from pancreas_mtl import build
from pancreas_mtl.data.files import claimed, make_folder
from pancreas_mtl.data.phantom import write_dataset
from pancreas_mtl.data.preprocess import preprocess
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.bundle import load_bundle, save_bundle
from pancreas_mtl.inference.pipeline import nifti_source, predict_cases
from pancreas_mtl.inference.predictor import Predictor
from pancreas_mtl.inference.writer import close_output, open_output
from pancreas_mtl.types import Case

pytestmark = pytest.mark.slow

LABELS = np.zeros((10, 9, 6), np.uint8)
LABELS[2:8, 2:7, 1:5], LABELS[4:6, 4:6, 2:4] = 1, 2


@pytest.fixture(autouse=True)
def one_thread():
    """A forked child has one thread, and sums of two threads end in other digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def killed_at(count, work, *, before):
    """Whether `work`, in a child of its own, came to its `count`-th rename and died there."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(120)  # a child must not outlive the test
            _die_at_rename(count, before=before)
            work()
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _die_at_rename(count, *, before):
    seen = 0

    def wrap(rename):
        def wrapped(*paths):
            nonlocal seen
            seen += 1
            if seen == count and before:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*paths)
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    os.replace, os.rename = wrap(os.replace), wrap(os.rename)


def visible(folder):
    """Contents by name, without what the clock decides and without leftovers of the killed."""
    files = {name: data for name, data in content(folder).items() if "/." not in f"/{name}"}
    for name in files:
        if name.endswith("run.json"):
            record = json.loads(files[name])
            for case in record["cases"]:
                case["seconds"] = None
            record["config"].pop("output_dir", None)
            files[name] = record
    return files


def check_every_kill(tmp_path, work, *, most):
    """`work(folder)` after a kill at each rename equals `work` left in peace."""
    work(tmp_path / "calm")
    kills = 0
    for count in range(1, most + 1):
        for before in (True, False):
            folder = tmp_path / f"kill-{count}-{before}"
            if not killed_at(count, lambda here=folder: work(here), before=before):
                assert kills >= 2, "nothing was ever renamed"
                return kills
            kills += 1
            work(folder)
            assert visible(folder) == visible(tmp_path / "calm"), (count, before)
    return kills


@pytest.fixture
def cases(tmp_path):
    found = []
    for seed in range(2):
        image = save_ct(tmp_path / "data" / f"{seed}_0000.nii.gz", ct(seed=seed))
        mask = save_ct(tmp_path / "data" / f"{seed}.nii.gz", LABELS)
        found.append(Case(str(seed), image, mask, seed))
    return found


def test_preprocessing(cases, tmp_path):
    kills = check_every_kill(
        tmp_path, lambda folder: preprocess(cases, PLAN, folder, workers=1), most=9
    )
    assert kills == 8  # two files for each of two cases


def test_preparing_a_training(tiny_quiz, tmp_path):
    """Its own audit, plan and preprocessing."""
    conf = str(Path(__file__).resolve().parents[2] / "conf")
    keys = ["data=quiz", f"data.root={tiny_quiz}", "plan=small", "plan.base_channels=4"]
    keys += ["plan.patch_size=[8,16,16]", "workers=1", f"output_dir={tmp_path / 'run'}"]
    with initialize_config_dir(conf, version_base="1.3"):
        config = compose("train", overrides=keys)
    dataset = build.dataset(config)
    few = replace(dataset.split, train=dataset.split.train[:1], validation=())
    names = dataset.split.train[:3]
    dataset = replace(dataset, split=few, cases={name: dataset.cases[name] for name in names})

    def prepare(folder):
        config.paths.cache = str(folder / "cache")
        build.prepare(config, dataset, make_folder(folder / "run"))

    kills = check_every_kill(tmp_path, prepare, most=9)
    assert kills == 10  # splits, audit, plan, and two files of a case
    assert (tmp_path / "calm" / "run" / "audit.json").exists()


def test_saving_a_bundle(tmp_path):
    def save(folder):
        for value in (1.0, 2.0):  # the second takes the place of the first
            weights = {"x": torch.full((9,), value)}
            save_bundle(folder / "bundle", weights, PLAN, {"model": MODEL})

    assert check_every_kill(tmp_path, save, most=20) >= 10


def test_predicting(model, cases, tmp_path):
    predictor = Predictor([load_bundle(model)], device="cpu", precision="fp32")

    def work(folder):
        sources = [nifti_source(case.image) for case in cases]
        names = [source.name for source in sources]
        if (folder / "run.json").exists():
            with pytest.raises(UsageError, match="holds a finished prediction"):
                open_output(folder, "x", names=names, overwrite=False)
            return
        done = open_output(folder, "x", names=names, overwrite=False)
        finished = {record.name for record in done}
        rest = [source for source in sources if source.name not in finished]
        records = [*done, *predict_cases(predictor, rest, folder)]
        close_output(folder, records, {"config": {}})

    kills = check_every_kill(tmp_path, work, most=20)
    assert kills >= 12  # journal, two masks, two tables, record
    assert not list(tmp_path.glob("kill-*/.*.tmp"))


def test_predicting_and_killed_between_mask_and_journal(model, cases, tmp_path, monkeypatch):
    predictor = Predictor([load_bundle(model)], device="cpu", precision="fp32")
    sources = [nifti_source(case.image) for case in cases]

    def work():
        open_output(tmp_path / "out", "x", names=["0", "1"], overwrite=False)
        predict_cases(predictor, sources[:1], tmp_path / "out")
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("pancreas_mtl.inference.pipeline.append", lambda *_: None)
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "out" / "0.nii.gz").exists()
    assert open_output(tmp_path / "out", "x", names=["0", "1"], overwrite=False) == []
    assert open_output(tmp_path / "out", "y", names=["0", "1"], overwrite=True) == []
    assert not (tmp_path / "out" / "0.nii.gz").exists()


@pytest.mark.slow
def test_evaluating_and_reporting(model, cases, tmp_path):
    save_ct(tmp_path / "in" / "0.nii.gz", ct(seed=0))
    predict(model, tmp_path / "in", tmp_path / "predictions")
    evaluated = tmp_path / "evaluation"

    def evaluate(folder):
        finished = call(
            "pancreas_mtl.evaluate",
            f"predictions={tmp_path / 'predictions'}",
            f"references={tmp_path / 'data'}",
            f"output_dir={folder}",
            "overlays=true",
            "missing=skip",
            "workers=1",
        )
        assert finished.code == 0, finished.stderr

    def report(folder):
        runs = f"runs=[{evaluated}]"
        finished = call("pancreas_mtl.report", runs, f"output_dir={folder}", "workers=1")
        assert finished.code == 0, finished.stderr

    evaluate(evaluated)
    assert check_every_kill(tmp_path / "e", evaluate, most=4) >= 6
    assert check_every_kill(tmp_path / "r", report, most=2) >= 2


@pytest.mark.slow
def test_making_phantoms(tmp_path):
    def work(folder):
        write_dataset(folder, num_train=1, num_validation=0, num_test=1, size="small")

    assert check_every_kill(tmp_path, work, most=4) >= 8


# Damage that nobody announced


@pytest.mark.parametrize("damage", ["voxel", "fact", "half", "json", "list", "empty", "pickle"])
def test_a_damaged_cache_entry_is_noticed_and_rebuilt(cases, tmp_path, damage):
    cache = tmp_path / "cache"
    first, second = preprocess(cases, PLAN, cache, workers=1)
    before = content(cache)
    array, facts = first.path, first.path.with_suffix(".json")
    data = bytearray(array.read_bytes())
    if damage == "voxel":
        data[-9] ^= 0x10
        array.write_bytes(data)
    elif damage == "half":
        array.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        array.write_bytes(b"")
    elif damage == "pickle":
        np.save(array, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif damage == "fact":
        raw = json.loads(facts.read_text())
        facts.write_text(json.dumps(raw | {"lesion_at": [[10**6] * 3]}))
    else:
        facts.write_text({"json": '{"format":', "list": "[1, 2]"}[damage])
    touched = second.path.stat().st_mtime_ns
    preprocess(cases, PLAN, cache, workers=1)
    assert content(cache) == before
    assert second.path.stat().st_mtime_ns == touched


@pytest.mark.parametrize("damage", ["half a line", "noise", "no names"])
def test_a_damaged_journal_costs_work_but_no_case(model, tmp_path, damage):
    for seed, name in enumerate(("a", "b")):
        save_ct(tmp_path / "in" / f"{name}.nii.gz", ct(seed=seed))
    calm = predict(model, tmp_path / "in", tmp_path / "calm")
    folder = tmp_path / "out"
    folder.mkdir()
    journal = {
        "half a line": b'{"fingerprint": "x", "names": ["a", "b"]}\n{"name": "a", "inp',
        "noise": np.random.default_rng(0).bytes(500),
        "no names": b"[]\n{}\n",
    }[damage]
    (folder / "journal.jsonl").write_bytes(journal)
    refused = predict(model, tmp_path / "in", folder).finished
    assert refused.code == 2
    assert "holds a started prediction with other models or settings" in refused.last_line
    assert (folder / "journal.jsonl").read_bytes() == journal
    again = predict(model, tmp_path / "in", folder, "overwrite=true")
    assert again.finished.code == 0
    assert visible(again.folder).keys() == visible(calm.folder).keys()
    for name in ("a.nii.gz", "b.nii.gz", "subtype_results.csv"):
        assert (folder / name).read_bytes() == (calm.folder / name).read_bytes()


# Two at a time


def test_two_runs_on_one_cache_do_not_disturb_each_other(cases, tmp_path):
    def work(folder):
        preprocess(cases, PLAN, folder, workers=1)

    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=work, args=(tmp_path / "cache",)) for _ in range(3)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0, 0]
    preprocess(cases, PLAN, tmp_path / "calm", workers=1)
    assert content(tmp_path / "cache") == content(tmp_path / "calm")


def test_two_predictions_never_share_an_output_folder(model, tmp_path):
    save_ct(tmp_path / "in" / "a.nii.gz")
    with claimed(make_folder(tmp_path / "out")):
        second = predict(model, tmp_path / "in", tmp_path / "out").finished
    assert second.code == 2
    assert "another process writes there; wait for it, or give another one" in second.last_line
    assert list((tmp_path / "out").iterdir()) == []
    assert predict(model, tmp_path / "in", tmp_path / "out").finished.code == 0
