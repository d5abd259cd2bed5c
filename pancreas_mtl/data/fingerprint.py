"""What a plan needs to know of a dataset: shapes, spacings, and HU inside the reference masks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pancreas_mtl.data.images import read_image, read_mask
from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import Case, FloatArray, Intensity, Triple, TripleMm

SAMPLES_PER_CASE = 10_000


@dataclass(frozen=True)
class CaseFingerprint:
    """One case: its shape and spacing, `(D, H, W)`, and HU drawn from inside its mask."""

    name: str
    shape: Triple
    spacing_mm: TripleMm
    foreground_hu: FloatArray  # up to SAMPLES_PER_CASE; empty without mask or foreground


@dataclass(frozen=True)
class Fingerprint:
    """The whole dataset, in the order of the cases' names."""

    shapes: tuple[Triple, ...]
    spacings_mm: tuple[TripleMm, ...]
    intensity: Intensity

    def digest(self) -> str:
        """A short name for these very facts, for the records of a run."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def fingerprint_case(case: Case) -> CaseFingerprint:
    """Read one case; raises `CaseError` where its files cannot be used."""
    image = read_image(case.image)
    values = np.empty(0, dtype=np.float32)
    if case.mask is not None:
        foreground = image.array[read_mask(case.mask, grid=image.source).array > 0]
        draw = np.random.default_rng(0).integers(
            0, max(1, foreground.size), size=min(SAMPLES_PER_CASE, foreground.size)
        )
        values = foreground[draw].astype(np.float32)
    shape = image.array.shape
    return CaseFingerprint(case.name, (shape[0], shape[1], shape[2]), image.spacing_mm, values)


def fingerprint(cases: Sequence[Case], *, workers: int) -> Fingerprint:
    """Measure all cases; the first one that cannot be read stops it (the audit lists them all).

    Raises:
        CaseError: a file cannot be used.
        UsageError: no case has a mask with foreground, or all of it has one value, so
            normalisation cannot be planned.
    """
    measured: list[CaseFingerprint] = []
    for _, result in map_in_processes(
        fingerprint_case, cases, workers=workers, label="fingerprint"
    ):
        if isinstance(result, Exception):
            raise result
        measured.append(result)
    measured.sort(key=lambda one: one.name)
    hu = np.concatenate([one.foreground_hu for one in measured]) if measured else np.empty(0)
    if hu.size == 0:
        raise UsageError("no case has a mask with foreground: training needs reference masks")
    low, high = np.percentile(hu, [0.5, 99.5])
    if not low < high:
        raise UsageError(
            f"every voxel inside the masks has {low:g} HU, so normalisation cannot be planned: "
            "check that images and masks belong together"
        )
    return Fingerprint(
        shapes=tuple(one.shape for one in measured),
        spacings_mm=tuple(one.spacing_mm for one in measured),
        intensity=Intensity(
            mean_hu=float(np.mean(hu, dtype=np.float64)),
            std_hu=float(max(np.std(hu, dtype=np.float64), 1e-3)),
            low_hu=float(low),
            high_hu=float(high),
        ),
    )
