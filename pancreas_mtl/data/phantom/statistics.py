"""What a phantom is drawn from: sizes and volumes of real cases, and the two difficulties.

The quantiles describe crops around the pancreas in portal-venous CT; drawing from them is by the
inverse of the cumulative distribution, interpolated geometrically between the quantiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from pancreas_mtl.types import Triple, TripleMm

Difficulty = Literal["easy", "hard"]
Size = Literal["full", "small"]

PROBABILITIES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
SLICES = (21, 37, 49, 63, 100, 142, 244)
ROWS = (68, 86, 103, 119, 136, 166, 272)
COLUMNS = (93, 134, 162, 179, 200, 243, 459)
SPACING_Z_MM = (0.45, 0.7, 1.0, 2.0, 3.0, 4.0, 8.0)
SPACING_XY_MM = (0.33, 0.56, 0.68, 0.73, 0.78, 0.89, 0.98)
PANCREAS_ML = (8, 30, 45, 62, 78, 105, 136)
LESION_ML = (0.02, 0.7, 2.7, 7.5, 15, 60, 637)
LESION_BY_SUBTYPE = (0.72, 1.02, 1.06)  # median lesion volume, relative to that of all cases
SUBTYPE_SHARES = (62 / 252, 106 / 252, 84 / 252)

EVEN_STEPS = 1.1673039782614187 ** -np.array([3.0, 2.0, 4.0, 1.0])  # see _even_numbers
MAX_LESION_SHARE = 0.15  # of the crop; more than this does not fit beside the pancreas
COARSENING = {"full": 1, "small": 2}  # voxel edge, relative to the scanner's
COARSEST_SLICE_MM = 6.0  # that coarsening makes; the scanner's own slices may be thicker


@dataclass(frozen=True)
class Recipe:
    """How visible organs and subtypes are; ranges are drawn from evenly."""

    noise_hu: tuple[float, float]  # standard deviation at full size
    fat_plane_mm: tuple[float, float]  # between the pancreas and its neighbours
    pancreas_hu: tuple[float, float]  # mean and standard deviation over the cases
    lobules_from: float  # the lower, the more fatty clefts
    neighbours_alike: float  # 1: soft tissue has the pancreas' HU; 0: its own; < 0: further apart
    lumen_hu: tuple[float, ...]  # water, chyme, positive contrast: what bowel is filled with
    collapsed: float  # share of the bowel loops that are without lumen
    contrast_tells: float  # 1: subtypes differ in mean HU; 0: only in texture and border
    lesion_ranks: tuple[float, float]  # range of the lesion volume's cumulative probability


RECIPES: dict[str, Recipe] = {
    "easy": Recipe(
        noise_hu=(6, 10),
        fat_plane_mm=(2.0, 4.0),
        pancreas_hu=(92, 8),
        lobules_from=1.6,
        neighbours_alike=-0.4,
        lumen_hu=(230.0, 260.0, 290.0),
        collapsed=0.0,
        contrast_tells=1.0,
        lesion_ranks=(0.07, 0.95),
    ),
    "hard": Recipe(
        noise_hu=(10, 16),
        fat_plane_mm=(0.3, 2.5),
        pancreas_hu=(92, 18),
        lobules_from=1.15,
        neighbours_alike=0.45,
        lumen_hu=(8.0, 30.0, 260.0),
        collapsed=0.2,
        contrast_tells=0.0,
        lesion_ranks=(0.02, 1.0),
    ),
}


@dataclass(frozen=True)
class Draw:
    """The numbers of one case before anything is drawn."""

    subtype: int
    shape: Triple
    spacing_mm: TripleMm
    pancreas_ml: float  # without the lesion
    lesion_ml: float

    @property
    def extent_mm(self) -> TripleMm:
        """Edges of the crop."""
        d, h, w = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return d, h, w


def draw_case(seed: int, index: int, recipe: Recipe, rng: np.random.Generator) -> Draw:
    """Subtype, sizes and volumes of one case.

    Thick slices come with few slices, and large lesions and pancreata with large crops, as a
    Gaussian copula; every single quantity follows its quantiles. Subtype, volumes and slice
    thickness fill their distributions evenly, so that small datasets show them too.
    """
    _, lesion_rank, pancreas_rank, thickness_rank = _even_numbers(seed, index)
    lesion, pancreas, thickness = ndtri((lesion_rank, pancreas_rank, thickness_rank))
    own = rng.standard_normal(5)  # what varies apart from the ranks
    size = 0.6 * lesion + 0.4 * pancreas + 0.69 * own[0]
    slices = quantile(SLICES, ndtr(-0.93 * thickness + 0.25 * size + 0.27 * own[1]))
    rows = quantile(ROWS, ndtr(-0.4 * own[2] + 0.7 * size + 0.59 * own[3]))
    columns = quantile(COLUMNS, ndtr(-0.4 * own[2] + 0.7 * size + 0.59 * own[4]))
    shape = (round(slices), round(rows), round(columns))
    spacing_xy = quantile(SPACING_XY_MM, ndtr(own[2]))
    spacing_mm = (quantile(SPACING_Z_MM, thickness_rank), spacing_xy, spacing_xy)

    subtype = subtype_of(seed, index)
    rank = np.interp(lesion_rank, (0, 1), recipe.lesion_ranks)
    lesion_ml = quantile(LESION_ML, float(rank)) * LESION_BY_SUBTYPE[subtype]
    crop_ml = float(np.prod(shape) * np.prod(spacing_mm)) / 1000
    largest_ml = min(LESION_ML[-1], MAX_LESION_SHARE * crop_ml)
    pancreas_ml = quantile(PANCREAS_ML, pancreas_rank)
    return Draw(subtype, shape, spacing_mm, pancreas_ml, min(lesion_ml, largest_ml))


def subtype_of(seed: int, index: int) -> int:
    """The subtype of a case; any run of consecutive cases has about the shares of real data."""
    return int(np.searchsorted(np.cumsum(SUBTYPE_SHARES)[:-1], _even_numbers(seed, index)[0]))


def quantile(values: tuple[float, ...], probability: float) -> float:
    """The value at a cumulative probability in [0, 1], interpolated geometrically."""
    return float(np.exp(np.interp(probability, PROBABILITIES, np.log(values))))


def _even_numbers(seed: int, index: int) -> npt.NDArray[np.float64]:
    """Four numbers in (0, 1) that successive indices spread evenly: a Kronecker sequence.

    Its steps are powers of the root of x^5 = x + 1, after M. Roberts' generalised golden ratio.
    """
    start = np.random.default_rng(seed).random(4)
    return np.clip((start + index * EVEN_STEPS) % 1, 1e-4, 1 - 1e-4)
