"""What fuzzers feed: each target takes bytes and may answer with one line, or with a result.

The suite drives the targets by hypothesis (`test_fuzz.py`); `fuzz_by_coverage.py` runs them longer.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from pancreas_mtl.data.cases import read_cases, read_official_folds, read_subtypes
from pancreas_mtl.data.images import geometry_warnings, read_image, read_mask
from pancreas_mtl.data.plan import load_plan
from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.evaluation.predictions import read_predictions
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.writer import open_output

MOST_VOXELS = 2**22  # that a file of a few kilobytes can hold, gzipped

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def nifti(data: bytes) -> None:
    """The bytes of a `.nii` file: header, extensions, voxels."""
    _image(data)


def gzipped(data: bytes) -> None:
    """The bytes of a gzip stream that a `.nii.gz` holds."""
    _image(b"\x1f\x8b\x08" + data)


def header(data: bytes) -> None:
    """348 bytes of a header, before voxels that are always there."""
    _image(gzip.compress(data[:348].ljust(348, b"\0") + bytes(20_000), 1))


def _image(data: bytes) -> None:
    path = FOLDER / "x.nii"
    path.write_bytes(data)
    with contextlib.suppress(CaseError):
        volume = read_image(path, warn=lambda _: None)
        assert np.isfinite(volume.array).all()
        assert volume.array.size <= MOST_VOXELS
        assert min(volume.spacing_mm) > 0
        geometry_warnings(volume.source)
    with contextlib.suppress(CaseError):
        assert read_mask(path).array.max() <= 2


def plan(data: bytes) -> None:
    """A `plan.json`."""
    (FOLDER / "plan.json").write_bytes(data)
    with contextlib.suppress(UsageError):
        assert 0 < np.prod(load_plan(FOLDER / "plan.json").patch_size) <= 512**3


def config(data: bytes) -> None:
    """A bundle's `config.yaml` and `calibration.json`, before weights that fit nothing."""
    folder = FOLDER / "bundle"
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(SEEDS["plan"][0].decode())
    (folder / "config.yaml").write_bytes(data)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with contextlib.suppress(UsageError):
        load_bundle(folder)
        raise AssertionError("there are no weights")


def weights(data: bytes) -> None:
    """A bundle's `model.safetensors`."""
    folder = FOLDER / "weights"
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text(SEEDS["plan"][0].decode())
    (folder / "config.yaml").write_bytes(SEEDS["config"][0])
    (folder / "model.safetensors").write_bytes(data)
    with contextlib.suppress(UsageError):
        load_bundle(folder)


def table(data: bytes) -> None:
    """`subtypes.csv` and the tables of a prediction."""
    for name in ("subtypes.csv", "subtype_results.csv", "subtype_probabilities.csv"):
        (FOLDER / name).write_bytes(data)
    with contextlib.suppress(UsageError):
        for name in read_subtypes(FOLDER / "subtypes.csv") or {}:
            assert "/" not in name
    with contextlib.suppress(UsageError):
        for name in read_predictions([FOLDER]):
            assert "/" not in name


def dataset(data: bytes) -> None:
    """`dataset.json`, and `splits_final.json`."""
    root = FOLDER / "dataset"
    (root / "imagesTr").mkdir(parents=True, exist_ok=True)
    (root / "imagesTr" / "a.nii.gz").touch()
    (root / "dataset.json").write_bytes(data)
    with contextlib.suppress(UsageError):
        for case in read_cases("msd", root):
            assert case.image.is_relative_to(root)
    (root / "imagesTr" / "a_0000.nii.gz").touch()
    with contextlib.suppress(UsageError):
        read_cases("nnunet", root)
    (root / "dataset.json").write_bytes(SEEDS["dataset"][0])
    (root / "splits_final.json").write_bytes(data)
    with contextlib.suppress(UsageError):
        read_official_folds("nnunet", root)
    for name in ("splits_final.json", "imagesTr/a_0000.nii.gz"):
        (root / name).unlink()


def journal(data: bytes) -> None:
    """The journal and the record of a prediction."""
    folder = FOLDER / "prediction"
    folder.mkdir(exist_ok=True)
    (folder / "journal.jsonl").write_bytes(data)
    with contextlib.suppress(UsageError):
        open_output(folder, "x", names=["a"], overwrite=False)
    (folder / "run.json").write_bytes(data)
    with contextlib.suppress(UsageError):
        read_predictions([folder])
    open_output(folder, "x", names=["a"], overwrite=True)


def _nifti_seed() -> bytes:
    file = io.BytesIO()
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5) % 3
    image = nib.Nifti1Image(array, np.diag([-1.5, -2.0, 4.0, 1.0]))
    image.to_file_map({"image": nib.FileHolder(fileobj=file)})
    return file.getvalue()


SEEDS = {
    "nifti": [_nifti_seed()],
    "gzipped": [gzip.compress(_nifti_seed())[3:]],
    "header": [_nifti_seed()[:348]],
    "plan": [
        b'{"schema": 1, "spacing_mm": [4.0, 2.0, 1.5], "patch_size": [8, 16, 16], "batch_size": 2,'
        b'"channels": [4, 4, 4], "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],'
        b'"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],'
        b'"intensity": {"mean_hu": 60.0, "std_hu": 50.0, "low_hu": -100.0, "high_hu": 250.0}}'
    ],
    "config": [
        b"format: 2\nmodel: {head: lesion, stages: [0, 1], hidden: 8, dropout: 0.0, "
        b"detach_head: false}\naugment: {flip_p: 0.5}\n"
    ],
    "weights": [(2).to_bytes(8, "little") + b"{}"],
    "table": [b"Names,Subtype\na.nii.gz,1\nb,\n", b"Names,p0,p1,p2\na.nii.gz,0.2,0.3,0.5\n"],
    "dataset": [
        b'{"channel_names": {"0": "CT"}, "labels": {"background": 0, "pancreas": 1, "lesion": 2},'
        b'"file_ending": ".nii.gz", "training": [{"image": "imagesTr/a.nii.gz", "label": "b"}]}',
        b'[{"train": ["a"], "val": ["b"]}]',
    ],
    "journal": [b'{"fingerprint": "x", "names": ["a"]}\n{"name": "a", "input": "a.nii.gz"}\n'],
}
TARGETS = {
    target.__name__: target
    for target in (nifti, gzipped, header, plan, config, weights, table, dataset, journal)
}
