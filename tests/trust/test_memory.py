"""Memory: bounded by the planes that are open, reported where it runs out."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trust.faults import PLAN, ct, predict, save_ct, write_bundle

from pancreas_mtl.data import images, pool
from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference import predictor
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.pipeline import Source, nifti_source, predict_cases
from pancreas_mtl.inference.predictor import Predictor
from pancreas_mtl.inference.writer import open_output

ROOT = Path(__file__).resolve().parents[2]
WHOLE_BODY = 512 * 512 * 1200  # voxels
LIMIT_GB = 8.0
# Prints how much a prediction of an image adds to the peak memory of this process.
MEASURE = r"""
import re, sys
from pathlib import Path
from pancreas_mtl.inference.pipeline import nifti_source, predict_cases
from pancreas_mtl.inference.predictor import PRESETS, Predictor
from pancreas_mtl.inference import predictor
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.writer import open_output
bundle, small, large, out = map(Path, sys.argv[1:])
predictor = Predictor([load_bundle(bundle)], preset=PRESETS["single"], device="cpu")
open_output(out, "x", overwrite=False)
for path in (small, large):
    (record,) = predict_cases(predictor, [nifti_source(path)], out)
    assert record.error is None, record.error
    # Unlike `ru_maxrss`, this peak is not that of the process which started this one.
    print(1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.slow
def test_a_whole_body_ct_fits_into_8_gb(tmp_path):
    """Memory per voxel that slices add to the peak, on an image of a fortieth of the size.

    Voxels and their copy at the plan's spacing are all that grows with the image: docs/
    reliability.md has the measurement at full size.
    """
    few, many = (64, 64, 128), (64, 64, 1920)
    model = write_bundle(tmp_path / "bundle", replace(PLAN, patch_size=(32, 64, 64)))
    small = save_ct(tmp_path / "small.nii", np.tile(ct((32, 32, 16)), (2, 2, 8)))
    large = save_ct(tmp_path / "large.nii", np.tile(ct((32, 32, 16)), (2, 2, 120)))
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, (model, small, large, tmp_path / "out"))],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    before, after = map(int, result.stdout.split())
    bytes_per_voxel = (after - before) / (np.prod(many) - np.prod(few))
    assert 4 < bytes_per_voxel < 20
    whole_gb = (before + bytes_per_voxel * WHOLE_BODY) / 1e9
    assert whole_gb < LIMIT_GB, f"{bytes_per_voxel:.1f} bytes a voxel"


def test_an_image_beyond_the_free_memory_costs_one_case(model, tmp_path, monkeypatch):
    save_ct(tmp_path / "in" / "large.nii.gz", ct((40, 40, 40)))
    save_ct(tmp_path / "in" / "small.nii.gz")
    monkeypatch.setattr(images, "free_ram_bytes", lambda: 40**3 * 5 - 1)
    predicted = predict(model, tmp_path / "in", tmp_path / "out")
    assert predicted.finished.code == 1
    assert sorted(predicted.cases) == ["small"]
    assert "GB are free: free memory, or crop it" in predicted.failures["large"]


def test_an_image_too_fine_for_the_free_memory_costs_one_case(model, tmp_path, monkeypatch):
    """Small in its file, but large at the plan's spacing."""
    save_ct(tmp_path / "in" / "coarse.nii.gz", ct((20, 20, 20)), np.diag((-90, -90, 90, 1)))
    save_ct(tmp_path / "in" / "small.nii.gz")
    monkeypatch.setattr(predictor, "free_ram_bytes", lambda: 1e8)
    predicted = predict(model, tmp_path / "in", tmp_path / "out")
    assert predicted.finished.code == 1
    assert sorted(predicted.cases) == ["small"]
    assert "coarse.nii.gz: needs 3.9 GB of memory" in predicted.failures["coarse"]
    assert "GB are free: free memory, or crop the image" in predicted.failures["coarse"]


def test_an_image_that_fits_alone_is_read_again_when_it_is(model, tmp_path):
    """The next image is read while one is computed; it may not fail for lack of its memory."""
    models = Predictor([load_bundle(model)], device="cpu", precision="fp32")
    paths = [save_ct(tmp_path / f"{name}.nii.gz") for name in "ab"]
    reads = []

    def read(warn):
        reads.append(1)
        if len(reads) == 1:
            raise MemoryError
        return images.read_image(paths[1], warn=warn)

    open_output(tmp_path / "out", "x", overwrite=False)
    sources = [nifti_source(paths[0]), Source("b", paths[1], read)]
    records = predict_cases(models, sources, tmp_path / "out")
    assert [record.error for record in records] == [None, None]
    assert len(reads) == 2


@pytest.mark.parametrize("stage", ["prepare", "infer", "finish"])
@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")],
)
def test_memory_that_runs_out_is_reported_with_a_remedy(model, tmp_path, monkeypatch, stage, error):
    models = Predictor([load_bundle(model)], device="cpu", precision="fp32")

    def fail(*_):
        raise error

    monkeypatch.setattr(models, stage, fail)
    path = save_ct(tmp_path / "a.nii.gz")
    open_output(tmp_path / "out", "x", overwrite=False)
    (record,) = predict_cases(models, [nifti_source(path)], tmp_path / "out")
    assert record.error.startswith(f"{path}: memory ran out during ")
    assert record.error.endswith(": free memory, or crop the image around the pancreas")
    assert not (tmp_path / "out" / "a.nii.gz").exists()


@pytest.mark.slow
def test_out_of_memory_in_a_worker_costs_one_item():
    code = (
        "__import__('resource').setrlimit(__import__('resource').RLIMIT_AS, (2**33, 2**33)) or "
        "len(bytearray({}))"
    )
    items = [code.format(size) for size in (10, 2**34, 20)]
    outcomes = dict(map_in_processes(eval, items, workers=2, label="test"))
    assert outcomes[items[0]] == 10
    assert outcomes[items[2]] == 20
    assert isinstance(outcomes[items[1]], CaseError)
    assert "memory ran out: lower the number of workers, or free" in str(outcomes[items[1]])


@pytest.mark.slow
def test_the_watchdog_ends_a_pool_that_hangs(monkeypatch, caplog):
    monkeypatch.setattr(pool, "STALL_S", 5.0)
    monkeypatch.setattr(pool, "HANG_S", 15.0)
    sleep = "__import__('time').sleep(10**6)"
    outcomes = dict(map_in_processes(eval, ["1", sleep, "2"], workers=2, label="test"))
    assert (outcomes["1"], outcomes["2"]) == (1, 2)
    assert "by the watchdog after 15 s without an answer" in str(outcomes[sleep])
    assert "no item has finished for 15 s: the workers are killed" in caplog.text
