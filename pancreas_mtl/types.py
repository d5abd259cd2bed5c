"""The nouns of the project, and the letters of its shapes.

Shape letters, used in every docstring and trailing comment:
    B  cases or patches in a batch          C  channels, or segmentation classes
    D, H, W  slices, rows, columns          S  subtypes
    N  cases in a set                       F  features of one subtype head

Arrays are always `(D, H, W)` in canonical orientation: D towards the patient's head (Superior),
H towards the back (Posterior), W towards the patient's Left, which is what a scan stored as "LPS"
gives. Spacing is always `(D, H, W)` in millimetres. Intensities are Hounsfield units (HU) until
they are normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # so that worker processes that only read files start without torch
    from torch import Tensor

Triple = tuple[int, int, int]
TripleMm = tuple[float, float, float]
FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]
Split = Literal["train", "validation", "test"]


class Label(IntEnum):
    """The values of a mask. The whole pancreas is PANCREAS and LESION together."""

    BACKGROUND = 0
    PANCREAS = 1
    LESION = 2


NUM_LABELS = len(Label)
NUM_REGIONS = 2  # whole pancreas and lesion, which overlap
NUM_SUBTYPES = 3
UNKNOWN = -1
"""Stands for a voxel without reference or a case without subtype; every loss leaves it out."""


@dataclass(frozen=True)
class Case:
    """One CT and what is known about it; a mask or a subtype may be missing."""

    name: str
    image: Path
    mask: Path | None = None
    subtype: int | None = None
    split: Split = "train"


@dataclass(frozen=True)
class SourceGrid:
    """The grid in which a file stores its voxels, as read; enough to write a mask that matches it.

    `shape` and `affine` follow the file's own axis order (i, j, k); `header` is the file's NIfTI
    header (or None for other sources, such as DICOM), kept to copy qform, sform and units.
    """

    shape: Triple
    affine: npt.NDArray[np.float64]  # (4, 4), voxel to RAS mm
    header: Any = None


@dataclass(frozen=True)
class Volume:
    """Voxels in canonical orientation, `(D, H, W)`, with the way back to the source's grid."""

    array: npt.NDArray[Any]
    spacing_mm: TripleMm
    source: SourceGrid


@dataclass(frozen=True)
class Intensity:
    """Normalisation of HU: clip to `[low_hu, high_hu]`, subtract the mean, divide by the std."""

    mean_hu: float
    std_hu: float
    low_hu: float
    high_hu: float


@dataclass(frozen=True)
class Plan:
    """What one dataset and one memory budget decide; the single home of these numbers.

    `channels`, `kernels` and `strides` have one entry per stage of the encoder, finest first;
    the first stride is (1, 1, 1).
    """

    spacing_mm: TripleMm
    patch_size: Triple
    batch_size: int
    channels: tuple[int, ...]
    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    intensity: Intensity

    @property
    def reductions(self) -> tuple[Triple, ...]:
        """By how much each stage's grid is coarser than the patch's, finest first."""
        return tuple((d, h, w) for d, h, w in np.cumprod(self.strides, axis=0).tolist())


class Batch(NamedTuple):
    """Patches (or one whole case) with their labels, ready for the network.

    `mask` and `subtype` hold UNKNOWN where there is no reference. `lesion_vox` counts the lesion
    voxels of the whole case at the plan's spacing; `seed` drives the augmentation of each patch.
    """

    image: Tensor  # (B, 1, D, H, W) float32, normalised
    mask: Tensor  # (B, 1, D, H, W) int16
    subtype: Tensor  # (B,) int64
    lesion_vox: Tensor  # (B,) float32
    seed: Tensor  # (B,) int64
    name: list[str]


class Evidence(NamedTuple):
    """What a subtype head gathers from one window: weighted sums, and their weights.

    Evidence adds up: the evidence of a case is the sum over its windows, and the subtype follows
    from the quotient `sums / weights`. So one case has one answer, however many windows it takes.
    """

    sums: Tensor  # (B, F) float32
    weights: Tensor  # (B, F) float32, >= 0


class MultitaskOutput(NamedTuple):
    """What the network answers to a batch."""

    segmentation: tuple[Tensor, ...]  # logits (B, C, D, H, W), finest first; C may be regions
    subtype: Tensor  # (B, S) logits, float32
    evidence: Evidence


@dataclass(frozen=True)
class Job:
    """One job of a multirun; `exit_code` is None where it was killed or never started."""

    number: int
    overrides: tuple[str, ...]
    output_dir: Path | None
    exit_code: int | None
    error: str | None


@dataclass(frozen=True)
class CasePrediction:
    """The answer for one case, in the source's spacing and canonical orientation."""

    labels: LabelArray  # (D, H, W)
    subtype_probabilities: FloatArray | None  # (S,), sums to 1; None from a model without subtypes
    conformal_set: tuple[int, ...] | None = None  # subtypes; None from a model without calibration
    mask_entropy: float | None = None  # mean over the predicted whole pancreas, in nats
    maps: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # see inference/maps.py
    logits: FloatArray | None = None  # (C, d, h, w) at the plan's spacing, where asked for
