"""The checks of one case by itself, and what each finding means."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.affines import obliquity

from pancreas_mtl.data.cases import subtype_in_name
from pancreas_mtl.data.images import (
    geometry_warnings,
    grid_difference,
    read_image,
    round_labels,
    to_source,
    volume_from_source,
)
from pancreas_mtl.errors import CaseError, LackOfMemoryError
from pancreas_mtl.types import Case, FloatArray, Label, LabelArray, Triple, TripleMm, Volume

Severity = Literal["error", "warning"]

CHECKS: dict[str, tuple[Severity, str]] = {
    "unreadable_image": ("error", "replace the file, or leave the case out"),
    "not_finite": ("error", "export it again, or use fix=true"),
    "constant_image": ("error", "replace the file, or leave the case out"),
    "unreadable_mask": ("error", "replace the file, or remove it: the case then has no mask"),
    "other_grid": ("error", "resample the mask onto its image"),
    "unknown_label": ("error", "use 0 background, 1 pancreas and 2 lesion alone"),
    "empty_mask": ("error", "draw the pancreas, or remove the mask"),
    "subtype_conflict": ("error", "move the file, or rename it"),
    "duplicate": ("error", "leave one of them out: a score on a training image means nothing"),
    "duplicate_in_test": ("warning", "leave one of them out"),
    "shifted_hu": ("warning", "check the rescale intercept when converting it"),
    "other_modality": ("warning", "check that it is a CT in HU"),
    "odd_header": ("warning", "check left and right in a viewer"),
    "odd_spacing": ("warning", "check the spacing against the scanner's"),
    "odd_orientation": ("warning", "nothing to do, if the patient lies right in a viewer"),
    "few_slices": ("warning", "check that the volume is complete"),
    "rounded_labels": ("warning", "nothing to do: reading rounds; fix=true stores integers"),
    "empty_lesion": ("warning", "nothing to do, if there is none to see"),
    "no_mask": ("warning", "nothing to do: the case teaches the subtype alone"),
    "no_subtype": ("warning", "nothing to do: the case teaches the segmentation alone"),
}
"""Every check, worst first: how bad it is, and what to do."""

USUAL_SPACING_MM = (0.3, 10.0)
MAX_OBLIQUE_DEG = 20.0
MAX_SHEAR = 0.02  # cosine of two axes
MIN_AXIS_VOX = 8


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one case."""

    code: str
    case: str
    message: str

    @property
    def severity(self) -> Severity:
        """`error` or `warning`."""
        return CHECKS[self.code][0]

    @property
    def remedy(self) -> str:
        """What to do."""
        return CHECKS[self.code][1]


@dataclass(frozen=True)
class CaseFacts:
    """What was measured of one readable image; the volumes are None without a usable mask."""

    name: str
    shape: Triple
    spacing_mm: TripleMm
    orientation: str  # of the file's axes, such as LPS
    digest: str  # of the voxels in canonical orientation, whatever the file's type
    pancreas_ml: float | None  # without the lesion
    lesion_ml: float | None


Found = tuple[str, str]  # code, message


def check_case(case: Case) -> tuple[CaseFacts | None, list[Finding]]:
    """Read and check one case; no facts where its image cannot be read."""
    notes: list[str] = []
    found = list(_check_labels(case))
    try:
        image = read_image(case.image, warn=notes.append)
    except LackOfMemoryError:
        raise
    except CaseError as error:
        found.append(("unreadable_image", str(error)))
        return None, [Finding(code, case.name, message) for code, message in found]
    labels, mask_found = _check_mask(case, image)
    found += [("not_finite", note) for note in notes]
    found += [*_check_geometry(image), *_check_intensities(image.array, labels), *mask_found]
    facts = _facts(case.name, image, labels)
    return facts, [Finding(code, case.name, message) for code, message in found]


def _check_labels(case: Case) -> Iterator[Found]:
    stated = subtype_in_name(case.name)
    if stated is not None and case.subtype is not None and stated != case.subtype:
        yield "subtype_conflict", f"its name says subtype {stated}, its place {case.subtype}"
    if case.split != "test" and case.mask is None:
        yield "no_mask", "has no mask"
    if case.split != "test" and case.subtype is None:
        yield "no_subtype", "has no subtype"


def _check_geometry(image: Volume) -> Iterator[Found]:
    for warning in geometry_warnings(image.source):
        yield "odd_header", warning
    low, high = USUAL_SPACING_MM
    if min(image.spacing_mm) < low or max(image.spacing_mm) > high:
        text = " x ".join(f"{value:.3g}" for value in image.spacing_mm)
        yield "odd_spacing", f"spacing {text} mm, outside {low:g} to {high:g}"
    if min(image.array.shape) < MIN_AXIS_VOX:
        yield "few_slices", f"shape {' x '.join(map(str, image.array.shape))}"
    angle_deg = float(np.degrees(obliquity(image.source.affine)).max())
    if angle_deg > MAX_OBLIQUE_DEG:
        yield "odd_orientation", f"axes {angle_deg:.0f} degrees off the patient's"
    axes = image.source.affine[:3, :3] / np.linalg.norm(image.source.affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > MAX_SHEAR:
        yield "odd_orientation", "axes that are not perpendicular to one another"


def _check_intensities(image: FloatArray, labels: LabelArray | None) -> Iterator[Found]:
    """A CT of the abdomen holds fat or air below -50 HU, and soft tissue around 50 HU."""
    lowest, highest = float(image.min()), float(image.max())
    if lowest == highest:
        yield "constant_image", f"every voxel is {lowest:g}"
        return
    sample = image.ravel()[:: max(1, image.size // 500_000)]
    inner_range_hu = float(np.ptp(np.percentile(sample, [0.5, 99.5])))
    if labels is not None and labels.any():
        tissue_hu = float(np.median(image[labels > 0]))
        is_shifted = 800 < tissue_hu < 1400 or tissue_hu < -700
        reason = f"a median of {tissue_hu:.0f} HU inside the mask"
    else:
        share = float(np.mean((sample > 874) & (sample < 1274)))
        is_shifted = lowest > -50 and share > 0.05
        reason = f"{share:.0%} of its voxels around 1074 HU, none below {lowest:.0f}"
    if is_shifted:
        yield "shifted_hu", f"{reason}: shifted by 1024?"
    elif lowest > -50 or inner_range_hu < 100:
        yield "other_modality", f"values from {lowest:g} to {highest:g}, unlike a CT"


def intensity_doubts(image: FloatArray) -> list[str]:
    """What speaks against an image (D, H, W) being a CT in HU, each with what to do."""
    return [f"{text}; {CHECKS[code][1]}" for code, text in _check_intensities(image, None)]


def _check_mask(case: Case, image: Volume) -> tuple[LabelArray | None, list[Found]]:
    """The labels in the image's orientation, if they can be used, and what was found."""
    if case.mask is None:
        return None, []
    notes: list[str] = []
    try:
        mask = read_image(case.mask, warn=notes.append)
        labels = round_labels(mask.array)
    except LackOfMemoryError:
        raise
    except CaseError as error:
        return None, [("unreadable_mask", str(error))]
    except ValueError as error:
        return None, [("unknown_label", f"its mask holds {error}")]
    if notes:
        return None, [("unknown_label", notes[0])]
    if problem := grid_difference(mask.source, image.source):
        return None, [("other_grid", f"its mask lies elsewhere: {problem}")]
    found: list[Found] = []
    if not np.array_equal(labels, mask.array):
        odd = mask.array[labels != mask.array][0]
        found.append(("rounded_labels", f"its mask holds {odd:.17g} and the like"))
    if not labels.any():
        found.append(("empty_mask", "its mask is empty"))
    elif not (labels == Label.LESION).any():
        found.append(("empty_lesion", "its mask holds no lesion"))
    labels = volume_from_source(to_source(labels, mask.source), image.source).array
    return labels, found


def _facts(name: str, image: Volume, labels: LabelArray | None) -> CaseFacts:
    voxel_ml = float(np.prod(image.spacing_mm)) / 1000
    pancreas_ml, lesion_ml = (
        None if labels is None else round(int((labels == label).sum()) * voxel_ml, 3)
        for label in (Label.PANCREAS, Label.LESION)
    )
    d, h, w = image.array.shape
    digest = hashlib.blake2b(f"{d} {h} {w} ".encode(), digest_size=16)
    digest.update(image.array.data)
    return CaseFacts(
        name=name,
        shape=(d, h, w),
        spacing_mm=image.spacing_mm,
        orientation="".join(nib.aff2axcodes(image.source.affine)),
        digest=digest.hexdigest(),
        pancreas_ml=pancreas_ml,
        lesion_ml=lesion_ml,
    )
