"""Bundles, checkpoints and plans from strangers: nothing of them runs, and nothing is believed."""

import json
import os
import pickle
import shutil
import tracemalloc

import pytest
import torch
import yaml
from commands import call
from safetensors.torch import load_file, save_file
from trust.faults import MODEL, content, predict, save_ct

from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.cross_validation import read_run_references
from pancreas_mtl.evaluation.report import write_report
from pancreas_mtl.inference.bundle import load_bundle, save_bundle
from pancreas_mtl.training.checkpoints import averaged_weights, read_checkpoint


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch HACKED",)


@pytest.fixture
def bundle(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(model, tmp_path / "bundle")


def edit_plan(bundle, **changes):
    path = bundle / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_model(bundle, **changes):
    path = bundle / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"model": MODEL | changes}))


PLANS = {
    "ten thousand stages": ({"channels": [4] * 10**4}, "channels="),
    "wide": ({"channels": [10**9] * 3}, "channels=(1000000000, "),
    "widest allowed": ({"channels": [2048] * 3}, "does not fit plan.json"),
    "fractions": ({"channels": [4.5, 4, 4]}, "channels=(4.5, 4, 4) is out of bounds"),
    "negative": ({"channels": [-4, 4, 4]}, "channels=(-4, 4, 4) is out of bounds"),
    "truth": ({"channels": [True, 4, 4]}, "channels=(True, 4, 4) is out of bounds"),
    "text": ({"channels": "many"}, "channels=many is out of bounds"),
    "huge kernels": ({"kernels": [[99, 99, 99]] * 3}, "kernels="),
    "huge strides": ({"strides": [[1, 1, 1], [64, 64, 64], [2, 2, 2]]}, "strides="),
    "no strides": ({"strides": []}, "strides="),
    "first stride": ({"strides": [[2, 1, 1], [1, 2, 2], [2, 2, 2]]}, "strides begin with"),
    "huge patch": ({"patch_size": [10**6] * 3}, "patch_size="),
    "odd patch": ({"patch_size": [9, 16, 16]}, "is not divisible by the strides"),
    "no patch": ({"patch_size": [0, 16, 16]}, "patch_size=(0, 16, 16) is out of bounds"),
    "huge batch": ({"batch_size": 10**9}, "batch_size=1000000000 is out of bounds"),
    "no spacing": ({"spacing_mm": [0, 1, 1]}, "spacing_mm="),
    "spacing nan": ({"spacing_mm": [float("nan"), 1, 1]}, "spacing_mm="),
    "spacing inf": ({"spacing_mm": [float("inf"), 1, 1]}, "spacing_mm="),
    "no spread": (
        {"intensity": {"mean_hu": 0, "std_hu": 0, "low_hu": 0, "high_hu": 1}},
        "intensity=",
    ),
    "mean inf": (
        {"intensity": {"mean_hu": float("inf"), "std_hu": 1, "low_hu": 0, "high_hu": 1}},
        "intensity=",
    ),
    "code": ({"_target_": "os.system", "command": "touch HACKED"}, "not a plan"),
    "a list": ([1, 2], "not a plan"),
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_plan_is_bounded_before_anything_is_built(bundle, tmp_path, kind):
    changes, message = PLANS[kind]
    if isinstance(changes, list):
        (bundle / "plan.json").write_text(json.dumps(changes))
    else:
        edit_plan(bundle, **changes)
    tracemalloc.start()
    with pytest.raises(UsageError) as caught:
        load_bundle(bundle)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    text = str(caught.value)
    assert message in text
    assert len(text) < 600
    assert "restore" in text or "mend" in text
    assert not (tmp_path / "HACKED").exists()


TEXTS = {
    "deep plan": ("plan.json", b"[" * 100_000, "plan.json: not a plan"),
    "large plan": ("plan.json", b" " * 2**20, "plan.json: not a plan (more than 262144 bytes)"),
    "plan in latin-1": ("plan.json", b'{"a": "\xff"}', "plan.json: not a plan"),
    "deep config": ("config.yaml", b"[" * 100_000, "config.yaml: not readable as plain YAML"),
    "large config": ("config.yaml", b"#" * 2**20, "more than 262144 bytes"),
    "python object": (
        "config.yaml",
        b"format: 2\nmodel: !!python/object/apply:os.system ['touch HACKED']\n",
        "not readable as plain YAML",
    ),
    "target": (
        "config.yaml",
        b"format: 2\nmodel: {_target_: os.system, command: touch HACKED}\n",
        "model is not usable",
    ),
    "target in a stage": (
        "config.yaml",
        b"format: 2\nmodel: {head: lesion, stages: [{_target_: os.system}]}\n",
        "model is not usable",
    ),
    "interpolation": (
        "config.yaml",
        b"format: 2\nmodel: {head: '${oc.env:HOME}', stages: [0]}\n",
        "model.head=${oc.env:HOME}: choose one of",
    ),
    "aliases within aliases": (
        "config.yaml",
        b"a0: &a0 [x, x]\n"
        + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 25))
        + b"format: *a24\n",
        "config.yaml: not readable as plain YAML (it has aliases); restore it from the run",
    ),
    "a number that takes long": (
        "config.yaml",
        b"format: 2" + b":1" * 50_000,
        "not readable as plain YAML (a value has 100001 digits)",
    ),
    "a format that is a text": ("config.yaml", b"format: " + b"x" * 9_999, "bundle format 'xxx"),
    "a head that is a text": (
        "config.yaml",
        b"format: 2\nmodel: {stages: [0], head: %s}\n" % (b"x" * 9_999),
        "choose one of",
    ),
    "no calibration": ("calibration.json", b"[]", "calibration.json: not a calibration"),
    "calibration of zero": ("calibration.json", b'{"subtype_temperature": 0}', "temperature=0"),
    "calibration nan": ("calibration.json", b'{"subtype_temperature": NaN}', "temperature=nan"),
    "bias nan": ("calibration.json", b'{"lesion_bias": NaN}', "lesion_bias=nan"),
    "bias": ("calibration.json", b'{"lesion_bias": 1e9}', "lesion_bias=1000000000.0"),
    "calibration text": ("calibration.json", b'{"subtype_temperature": "x"}', "not a calibration"),
    "pickle for weights": (
        "model.safetensors",
        pickle.dumps(RunsCode()),
        "model.safetensors: damaged",
    ),
    "weights that promise much": (
        "model.safetensors",
        (2**62).to_bytes(8, "little") + b"{}",
        "model.safetensors: damaged",
    ),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_files_bytes_are_never_run(bundle, tmp_path, kind):
    name, data, message = TEXTS[kind]
    (bundle / name).write_bytes(data)
    with pytest.raises(UsageError) as caught:
        load_bundle(bundle)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize("data", [b"data: &a [*a]\n", b"data: []\n", b"x: 1\n"])
def test_the_config_of_a_run_is_read_as_that_of_a_bundle(tmp_path, data):
    for folder in (tmp_path, tmp_path / "bundle"):
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_bytes(data)
    with pytest.raises(UsageError, match=r"config\.yaml: (not readable|names no dataset)"):
        read_run_references([tmp_path])
    (tmp_path / "metrics.csv").write_text("epoch,train/loss\n0,1\n1,0.5\n")
    if b"*" in data:
        with pytest.raises(UsageError, match=r"config\.yaml: not readable as plain YAML"):
            write_report([tmp_path], tmp_path / "report")


def test_what_comes_twice_in_a_configuration_is_written_twice(tmp_path, model):
    stages = [0, 1]
    bundle = load_bundle(model)
    config = {"model": {**MODEL, "stages": stages}, "again": stages}
    save_bundle(tmp_path / "bundle", bundle.network.state_dict(), bundle.plan, config)
    assert load_bundle(tmp_path / "bundle").config["again"] == stages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 10**12}, "does not fit plan.json"),
        ({"hidden": -1}, "model is not usable"),
        ({"dropout": "much"}, "model is not usable"),
        ({"stages": [7]}, "model.stages"),
        ({"head": ["lesion"]}, "model is not usable"),
        ({"colour": "red"}, "model is not usable"),
        ({"head": "gap"}, "does not fit plan.json"),
    ],
)
def test_a_model_section_is_checked_against_the_weights(bundle, changes, message):
    edit_model(bundle, **changes)
    with pytest.raises(UsageError, match=message):
        load_bundle(bundle)


def test_weights_that_are_not_finite_are_refused_by_name(bundle):
    weights = load_file(bundle / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, bundle / "model.safetensors")
    with pytest.raises(UsageError, match=f"{name} is not finite; restore the bundle"):
        load_bundle(bundle)


@pytest.mark.parametrize("missing", ["plan.json", "config.yaml", "model.safetensors"])
def test_the_command_refuses_before_any_work(bundle, tmp_path, missing):
    (bundle / missing).unlink()
    save_ct(tmp_path / "in" / "x.nii.gz")
    before = content(tmp_path)
    finished = predict(bundle, tmp_path / "in", tmp_path / "out").finished
    assert finished.code == 2
    assert f"{missing}: not found" in finished.last_line
    assert content(tmp_path) == before


def test_what_a_bundle_holds_decides_its_hash_in_the_record(model, bundle, tmp_path):
    save_ct(tmp_path / "in" / "x.nii.gz")
    same = predict(bundle, tmp_path / "in", tmp_path / "a").record["bundles"]
    assert same == predict(model, tmp_path / "in", tmp_path / "b").record["bundles"]
    path = bundle / "calibration.json"
    path.write_text(path.read_text().replace("1.0", "1.5"))
    other = predict(bundle, tmp_path / "in", tmp_path / "c").record["bundles"]
    assert other != same
    assert all(len(digest) == 32 for digest in (*same, *other))


# Checkpoints

CHECKPOINTS = {
    "pickle": lambda path: path.write_bytes(pickle.dumps(RunsCode())),
    "pickle within": lambda path: torch.save({"state_dict": {}, "x": RunsCode()}, path),
    "module": lambda path: torch.save({"state_dict": torch.nn.Linear(1, 1)}, path),
    "list": lambda path: torch.save([1, 2], path),
    "tensor": lambda path: torch.save(torch.zeros(3), path),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "zip": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "half": lambda path: (
        torch.save({"state_dict": {"a": torch.zeros(9)}}, path),
        path.write_bytes(path.read_bytes()[:300]),
    ),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_is_read_as_plain_values_or_not_at_all(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    CHECKPOINTS[kind](tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match=r"last\.ckpt: not a checkpoint .*; start anew by over"):
        averaged_weights(tmp_path / "last.ckpt")
    assert not (tmp_path / "HACKED").exists()


def test_a_checkpoint_without_weights_is_missing_by_name(tmp_path):
    with pytest.raises(UsageError, match=r"last\.ckpt: not found; without it"):
        read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("kind", ["pickle", "half"])
def test_training_does_not_resume_from_a_hostile_checkpoint(tmp_path, monkeypatch, tiny_quiz, kind):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    CHECKPOINTS[kind](run / "checkpoints" / "last.ckpt")
    before = content(run)
    monkeypatch.chdir(tmp_path)
    finished = call(
        "train",
        "data=quiz",
        f"data.root={tiny_quiz}",
        f"output_dir={run}",
        f"paths.outputs={tmp_path / 'o'}",
        "resume=true",
    )
    assert finished.code == 2
    assert "last.ckpt: not a checkpoint of this project" in finished.last_line
    assert content(run) == before
    assert not (tmp_path / "HACKED").exists()
