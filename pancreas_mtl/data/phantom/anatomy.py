"""The anatomy of one crop, in Hounsfield units and labels on the fine lattice.

A bent, tapering pancreas (head, body, tail) with its duct and lesion comes first; its neighbours
are then placed around it and give way to it and to one another, so that a fat plane is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pancreas_mtl.data.phantom import lesions
from pancreas_mtl.data.phantom.geometry import Points, Space, coverage, curve, tube, tube_distance
from pancreas_mtl.data.phantom.neighbours import place_neighbours
from pancreas_mtl.data.phantom.statistics import Draw, Recipe
from pancreas_mtl.types import FloatArray, Label, LabelArray

# Head (uncinate process first), neck, body and tail, as fractions of the crop's edges
CENTRELINE = (
    (0.13, 0.62, 0.24),
    (0.30, 0.56, 0.19),
    (0.46, 0.40, 0.26),
    (0.58, 0.30, 0.42),
    (0.68, 0.38, 0.60),
    (0.76, 0.56, 0.76),
    (0.82, 0.72, 0.87),
)
CALIBRE = (0.85, 1.25, 1.05, 0.72, 0.80, 0.78, 0.55)  # radius along the centreline, relative
CENTRELINE_JITTER = 0.035
CENTRELINE_POINTS = 72
FAT_HU = -102.0
ATROPHY = 0.72  # calibre upstream of an obstructed duct


@dataclass(frozen=True)
class Pancreas:
    """The organ before it is painted: fields on both lattices, in mm."""

    line: Points
    radius_mm: FloatArray  # along the line, before calibration
    distance: FloatArray  # fine, signed
    coarse_distance: FloatArray


@dataclass(frozen=True)
class Anatomy:
    """What the scanner sees, on the fine lattice."""

    hu: FloatArray
    labels: LabelArray


def build_anatomy(
    rng: np.random.Generator, draw: Draw, subtype: int, recipe: Recipe
) -> tuple[Anatomy, FloatArray, FloatArray]:
    """Draw one crop.

    Returns:
        HU, share of whole pancreas and share of lesion in each fine voxel.
    """
    space = Space(draw.extent_mm)
    line, calibre = _centreline(space, rng)
    place = rng.uniform(0.08, 0.9)
    index = int(place * (len(line) - 1))
    centre = line[index] + rng.normal(0, 2.5, 3)
    obstructed = subtype == lesions.INFILTRATING
    if obstructed:
        calibre[index:] *= ATROPHY
    centre = np.clip(centre, *_room(space, draw.lesion_ml))
    lesion_mm = lesions.lesion_distance(space, rng, centre, draw.lesion_ml, subtype)
    pancreas = _pancreas(space, rng, line, calibre, lesion_mm, draw.pancreas_ml)

    pancreas_hu = rng.normal(*recipe.pancreas_hu)
    whole_coarse = np.minimum(pancreas.coarse_distance, _coarsen(space, lesion_mm))
    hu = place_neighbours(space, rng, line, whole_coarse, pancreas_hu, recipe)
    parenchyma = _parenchyma_hu(space, rng, pancreas_hu)
    hu = _paint(hu, pancreas.distance, parenchyma)
    if obstructed:
        duct_mm = rng.uniform(2.0, 3.2)
        duct = space.refine(tube_distance(space, line[index:], duct_mm))
        hu = _paint(hu, np.maximum(duct, pancreas.distance + 1.5), lesions.DUCT_HU)
    lesion = lesions.lesion_hu(space, rng, lesion_mm, subtype, pancreas_hu, recipe)
    hu = _paint(hu, lesion.distance, lesion.hu, lesion.border_mm)
    whole = np.minimum(pancreas.distance, lesion_mm)
    return hu, coverage(whole), coverage(lesion_mm)


def _centreline(space: Space, rng: np.random.Generator) -> tuple[Points, FloatArray]:
    control = np.array(CENTRELINE) + rng.normal(0, CENTRELINE_JITTER, (len(CENTRELINE), 3))
    line = curve(control * np.array(space.extent_mm), CENTRELINE_POINTS)
    calibre = np.array(CALIBRE) * np.exp(rng.normal(0, 0.1, len(CALIBRE)))
    t = np.linspace(0, 1, CENTRELINE_POINTS)
    return line, np.interp(t, np.linspace(0, 1, len(calibre)), calibre).astype(np.float32)


def _room(space: Space, volume_ml: float) -> tuple[Points, Points]:
    """Where the centre of a lesion of this volume may lie inside the crop."""
    extent = np.array(space.extent_mm)
    radius_mm = 1.15 * (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3) + 3
    low = np.minimum(radius_mm, 0.45 * extent)
    return low, extent - low


def _pancreas(
    space: Space,
    rng: np.random.Generator,
    line: Points,
    calibre: FloatArray,
    lesion_mm: FloatArray,
    volume_ml: float,
) -> Pancreas:
    """The tube around the centreline whose volume outside the lesion is the one given."""
    relative, local = tube(space, line, calibre)
    relative = relative + local * space.coarse_noise(rng, 9.0) * np.float32(0.9)
    fine, fine_local = space.refine(relative), space.refine(local)
    free = fine + lesions.border_penalty(space)
    outside = free[lesion_mm > 0]
    level = lesions.threshold_for_volume(outside, volume_ml / space.fine_ml)
    return Pancreas(
        line, calibre * level, (free - level) * fine_local, (relative - level) * local
    )


def _coarsen(space: Space, fine: FloatArray) -> FloatArray:
    """Nearest values of a fine field on the coarse lattice."""
    index = [
        np.minimum((x.ravel() / e * n).astype(int), n - 1)
        for x, e, n in zip(space.coarse, space.extent_mm, fine.shape, strict=True)
    ]
    return fine[np.ix_(*index)]


def _parenchyma_hu(space: Space, rng: np.random.Generator, mean_hu: float) -> FloatArray:
    """Lobules with fatty clefts between them."""
    clefts = np.clip(space.noise(rng, 4.0) - 1.5, 0, 1.2)
    return np.float32(mean_hu) + 6 * space.noise(rng, 5.0) - 60 * clefts


def _paint(
    hu: FloatArray, distance: FloatArray, value: FloatArray | float, softness_mm: float = 1.25
) -> FloatArray:
    share = coverage(distance, softness_mm)
    return hu + share * (value - hu)
