"""Shared fixtures: tiny plans, networks, bundles and cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

# Workers that run tests side by side share the cores; libraries read this when they are loaded.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import nibabel as nib
import numpy as np
import pytest
import torch

from pancreas_mtl.data.files import one_at_a_time
from pancreas_mtl.data.phantom import write_dataset
from pancreas_mtl.inference.bundle import save_bundle
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import Intensity, Plan

# absl, which comes with TensorBoard and surface-distance, closes the stream that it found when it
# was imported, here pytest's own, as soon as a command configures logging.
with suppress(ImportError):
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

MODEL = {"head": "lesion", "stages": [0, 1], "hidden": 32, "dropout": 0.2, "detach_head": False}
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def plan() -> Plan:
    """Three stages, one of them anisotropic; inputs divisible by (2, 4, 4)."""
    return Plan(
        spacing_mm=(4.0, 1.5, 2.0),
        patch_size=(8, 16, 16),
        batch_size=2,
        channels=(4, 8, 8),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        intensity=Intensity(mean_hu=60.0, std_hu=50.0, low_hu=-100.0, high_hu=250.0),
    )


@pytest.fixture
def network(plan: Plan) -> MultitaskUNet:
    torch.manual_seed(0)
    return MultitaskUNet(plan, NetworkConfig(stages=(0, 1))).eval()


@pytest.fixture
def bundle(tmp_path: Path, plan: Plan, network: MultitaskUNet) -> Path:
    """A bundle folder with random weights."""
    save_bundle(tmp_path / "bundle", network.state_dict(), plan, {"model": MODEL})
    return tmp_path / "bundle"


@pytest.fixture
def write_nifti():
    """A function that writes `(i, j, k)` voxels with a spacing, oriented LPS."""

    def write(path: Path, array: np.ndarray, spacing_mm=(1.5, 2.0, 4.0)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
        nib.save(nib.Nifti1Image(array, affine), path)
        return path

    return write


@pytest.fixture
def real_ct() -> Path:
    """The folder with real CTs, where the environment names one."""
    folder = os.environ.get("PANCREAS_MTL_REAL_CT")
    if not folder:
        pytest.skip("PANCREAS_MTL_REAL_CT is not set")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; long tests first, so that none is waited for."""
    items.sort(key=lambda item: "slow" not in item.keywords)
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny_quiz(tmp_path_factory) -> Path:
    """A quiz dataset of small easy phantoms: 10 to train, 3 to validate, 3 to test."""
    root = tmp_path_factory.mktemp("quiz") / "data"
    write_dataset(root, num_train=10, num_validation=3, num_test=3, seed=1, size="small")
    return root


# Small CT series in DICOM

ROWS, COLUMNS, SLICES = 7, 9, 5
ROWS_MM, COLUMNS_MM, STEP_MM = 0.7, 0.9, 2.0
ORIGIN_MM = np.array([-30.0, -40.0, 100.0])
AXIAL = np.eye(3)[:2]
SLOPE, INTERCEPT = 2.0, -1000.0


def stored_values(slices=SLICES):
    """Voxels (slices, rows, columns) that tell their place."""
    k, row, column = np.indices((slices, ROWS, COLUMNS))
    return (100 * k + 10 * row + column).astype(np.uint16)


def header(index, *, axes, uid, study, frame):
    """One slice; its thickness is no spacing."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(index)])
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid, study
    dataset.FrameOfReferenceUID = frame
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SeriesDescription = "portal venous"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "MRN-4711"
    dataset.ImageOrientationPatient = axes.ravel().tolist()
    normal = np.cross(*axes)
    dataset.ImagePositionPatient = (ORIGIN_MM + index * STEP_MM * normal).tolist()
    dataset.PixelSpacing, dataset.SliceThickness = [ROWS_MM, COLUMNS_MM], 5.0
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLUMNS, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = SLOPE, INTERCEPT
    return dataset


@pytest.fixture
def write_series():
    """A function that writes a series of SLICES slices, its files in no order of position.

    `edit(index, dataset)` changes a slice before it is written, or drops it by returning False.
    """
    pytest.importorskip("pydicom", reason="needs the extra dicom")

    def write(
        folder, edit=lambda index, dataset: None, *, axes=AXIAL, uid="1.2.3.4", slices=SLICES
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for index, values in enumerate(stored_values(slices)):
            dataset = header(index, axes=axes, uid=uid, study="1.2.3", frame="1.2.5")
            dataset.PixelData = values.tobytes()
            if edit(index, dataset) is not False:
                path = folder / f"IM{(3 * index + 1) % slices}{index}{uid[-1]}.dcm"
                dataset.save_as(path, enforce_file_format=True)
        return folder

    return write


@pytest.fixture(scope="session")
def box_quiz(tmp_path_factory) -> Path:
    """A dataset in the quiz layout: 12 training cases of 12 x 20 x 20 voxels, boxes in noise."""
    root = tmp_path_factory.mktemp("boxes") / "data"
    rng = np.random.default_rng(0)
    for number in range(12):
        subtype = number % 3
        mask = np.zeros((20, 20, 12), np.uint8)
        mask[4:16, 4:16, 3:10] = 1
        mask[7:12, 7:12, 5:8] = 2
        image = rng.normal(20, 20, mask.shape) + 60 * (mask > 0) + 30 * subtype * (mask == 2)
        folder = root / "train" / f"subtype{subtype}"
        folder.mkdir(parents=True, exist_ok=True)
        affine = np.diag([-1.5, -1.5, 3.0, 1.0])
        name = f"quiz_{subtype}_{number:03d}"
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / f"{name}_0000.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), folder / f"{name}.nii.gz")
    return root


@pytest.fixture(scope="session")
def trainings(tmp_path_factory, box_quiz) -> tuple[Path, dict]:
    """The trainings of trainings.py: their folder, and what each of them did.

    Workers that run tests side by side share them: the first makes them, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    shared = "PYTEST_XDIST_WORKER" in os.environ
    folder = (base.parent if shared else base) / "trainings"
    folder.mkdir(exist_ok=True)
    told = folder / "told.json"
    with one_at_a_time(folder):
        if not told.exists():
            told.write_text(_run_trainings(box_quiz, folder))
    return folder, json.loads(told.read_text())


def _run_trainings(data: Path, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "trainings.py", data, folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]
