"""One finished phantom case: what a scan and its mask would hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pancreas_mtl.data.phantom import scanner
from pancreas_mtl.data.phantom.anatomy import build_anatomy
from pancreas_mtl.data.phantom.statistics import (
    COARSENING,
    COARSEST_SLICE_MM,
    RECIPES,
    Difficulty,
    Draw,
    Size,
    draw_case,
)
from pancreas_mtl.types import Label, LabelArray, Triple, TripleMm

SMALLEST_AXIS_VOX = 8


@dataclass(frozen=True)
class PhantomCase:
    """HU and labels `(D, H, W)` in canonical orientation."""

    image_hu: npt.NDArray[np.int16]
    labels: LabelArray
    spacing_mm: TripleMm
    subtype: int


def make_phantom(
    seed: int, index: int, *, difficulty: Difficulty = "easy", size: Size = "full"
) -> PhantomCase:
    """Draw one case; the same arguments always give the same case.

    Args:
        seed: of the whole dataset, >= 0.
        index: of the case in it, >= 0.
        difficulty: `easy` shows organs and subtypes clearly; in `hard`, intensity alone tells
            neither the pancreas from its neighbours nor the subtypes from one another.
        size: `small` stores the same anatomy in voxels of twice the edge, but in slices of no
            more than 6 mm unless the scanner's own are thicker.
    """
    recipe = RECIPES[difficulty]
    rng = np.random.default_rng([seed, index])
    draw = draw_case(seed, index, recipe, rng)
    anatomy = build_anatomy(draw, recipe, rng)
    noise_hu = rng.uniform(*recipe.noise_hu) / COARSENING[size]
    shape, spacing_mm = _stored_grid(draw, COARSENING[size])
    labels = np.zeros(shape, np.uint8)
    labels[scanner.sample(anatomy.whole_pancreas, shape, spacing_mm) > 0.5] = Label.PANCREAS
    labels[scanner.sample(anatomy.lesion, shape, spacing_mm) > 0.5] = Label.LESION
    image = scanner.sample(anatomy.hu, shape, spacing_mm)
    image += scanner.noise(rng, shape, spacing_mm, noise_hu)
    return PhantomCase(scanner.to_hu(image), labels, spacing_mm, draw.subtype)


def _stored_grid(draw: Draw, edge: int) -> tuple[Triple, TripleMm]:
    """Shape and spacing with voxels of `edge` times the scanner's edge."""
    thicker = min(float(edge), max(1.0, COARSEST_SLICE_MM / draw.spacing_mm[0]))
    d, h, w = (
        max(SMALLEST_AXIS_VOX, round(n / factor))
        for n, factor in zip(draw.shape, (thicker, edge, edge), strict=True)
    )
    z, y, x = (e / n for e, n in zip(draw.extent_mm, (d, h, w), strict=True))
    return (d, h, w), (z, y, x)
