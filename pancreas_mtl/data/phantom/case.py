"""One finished phantom case: what a scan and its mask would hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pancreas_mtl.data.phantom import scanner
from pancreas_mtl.data.phantom.anatomy import build_anatomy
from pancreas_mtl.data.phantom.statistics import (
    COARSENING,
    RECIPES,
    SUBTYPE_SHARES,
    Difficulty,
    Size,
    draw_case,
)
from pancreas_mtl.types import Label, LabelArray, TripleMm

GOLDEN = 0.6180339887498949  # its multiples fill the unit interval evenly
SMALLEST_AXIS_VOX = 8


@dataclass(frozen=True)
class PhantomCase:
    """HU and labels `(D, H, W)` in canonical orientation."""

    image_hu: npt.NDArray[np.int16]
    labels: LabelArray
    spacing_mm: TripleMm
    subtype: int


def subtype_of(seed: int, index: int) -> int:
    """The subtype of a case; any run of consecutive cases has about the shares of real data."""
    start = np.random.default_rng(seed).random()
    return int(np.searchsorted(np.cumsum(SUBTYPE_SHARES)[:-1], (start + index * GOLDEN) % 1))


def make_phantom(
    seed: int, index: int, *, difficulty: Difficulty = "easy", size: Size = "full"
) -> PhantomCase:
    """Draw one case; the same arguments always give the same case.

    Args:
        seed: of the whole dataset, >= 0.
        index: of the case in it, >= 0.
        difficulty: `easy` shows organs and subtypes clearly; in `hard`, intensity alone tells
            neither the pancreas from its neighbours nor the subtypes from one another.
        size: `small` stores the same anatomy in voxels of twice the edge.
    """
    recipe = RECIPES[difficulty]
    subtype = subtype_of(seed, index)
    rng = np.random.default_rng([seed, index])
    draw = draw_case(rng, subtype, recipe)
    anatomy = build_anatomy(rng, draw, subtype, recipe)
    noise_hu = rng.uniform(*recipe.noise_hu) / COARSENING[size]
    d, h, w = (max(SMALLEST_AXIS_VOX, round(n / COARSENING[size])) for n in draw.shape)
    shape = (d, h, w)
    z, y, x = (e / n for e, n in zip(draw.extent_mm, shape, strict=True))
    spacing_mm = (z, y, x)
    labels = np.zeros(shape, np.uint8)
    labels[scanner.sample(anatomy.whole_pancreas, shape, spacing_mm) > 0.5] = Label.PANCREAS
    labels[scanner.sample(anatomy.lesion, shape, spacing_mm) > 0.5] = Label.LESION
    image = scanner.sample(anatomy.hu, shape, spacing_mm)
    image += scanner.noise(rng, shape, spacing_mm, noise_hu)
    return PhantomCase(scanner.to_hu(image), labels, spacing_mm, subtype)
