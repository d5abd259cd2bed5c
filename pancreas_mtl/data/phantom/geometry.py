"""Shapes as signed distance fields: negative inside, in millimetres, on two grids of one crop.

Smooth fields are computed on a coarse lattice and refined by splines to the fine one, in which the
anatomy is drawn. Positions are `(D, H, W)` in mm from the crop's lower corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline, make_interp_spline

from pancreas_mtl.types import FloatArray, Triple, TripleMm

COARSE_MM = 3.0
FINE_MM = 1.25
REACH_MM = 12.0  # beyond which the distance to a tube does not matter
FACE_MARGIN_MM = 2.5
Points = npt.NDArray[np.float64]  # (n, 3) positions, or (3,) for one
Box = tuple[slice, slice, slice]
WHOLE: Box = (slice(None), slice(None), slice(None))
Axes = tuple[FloatArray, FloatArray, FloatArray]  # positions along D, H, W, ready to broadcast


@dataclass(frozen=True)
class Space:
    """A crop in millimetres with its coarse and fine lattices of cell centres."""

    extent_mm: TripleMm

    @cached_property
    def fine_shape(self) -> Triple:
        """Voxels of the lattice in which the anatomy is drawn."""
        return _shape(self.extent_mm, FINE_MM)

    @cached_property
    def coarse_shape(self) -> Triple:
        """Voxels of the lattice in which distances are computed."""
        return _shape(self.extent_mm, COARSE_MM)

    @cached_property
    def fine(self) -> Axes:
        """Positions of the fine lattice."""
        return _positions(self.extent_mm, self.fine_shape)

    @cached_property
    def coarse(self) -> Axes:
        """Positions of the coarse lattice."""
        return _positions(self.extent_mm, self.coarse_shape)

    @property
    def fine_ml(self) -> float:
        """Volume of one fine voxel."""
        return float(np.prod(self.extent_mm) / np.prod(self.fine_shape)) / 1000

    def at(self, fractions: Points | TripleMm) -> Points:
        """Positions at fractions of the crop's edges."""
        return np.asarray(fractions) * self.extent_mm

    def refine(self, field: FloatArray, box: Box = WHOLE) -> FloatArray:
        """A lattice of any pitch over this crop, interpolated to (a box of) the fine one."""
        return _interpolate(field, self.fine_shape, box)

    def box_of(self, inside: npt.NDArray[np.bool_]) -> Box:
        """The fine voxels around all coarse cells that are marked, of which there is one."""
        slices = []
        for cells, n, m in zip(np.nonzero(inside), inside.shape, self.fine_shape, strict=True):
            first, last = max(int(cells.min()) - 1, 0), min(int(cells.max()) + 2, n)
            slices.append(slice(first * m // n, -(-last * m // n)))
        return slices[0], slices[1], slices[2]

    def coarsen(self, field: FloatArray) -> FloatArray:
        """Nearest values of a fine field on the coarse lattice."""
        index = [
            np.arange(m) * n // m + n // (2 * m)
            for n, m in zip(self.fine_shape, self.coarse_shape, strict=True)
        ]
        return field[np.ix_(*index)]

    def noise(self, rng: np.random.Generator, scale_mm: float) -> FloatArray:
        """Smooth noise of about unit variance on the fine lattice; bumps of about `scale_mm`."""
        return self.refine(_lattice_noise(rng, self.extent_mm, scale_mm))

    def coarse_noise(self, rng: np.random.Generator, scale_mm: float) -> FloatArray:
        """The same on the coarse lattice."""
        return _interpolate(_lattice_noise(rng, self.extent_mm, scale_mm), self.coarse_shape)

    def face_penalty(self) -> FloatArray:
        """A large field value beside the crop's faces, which keeps shapes from touching them."""
        penalty = np.zeros(self.fine_shape, np.float32)
        for axis, (x, extent) in enumerate(zip(self.fine, self.extent_mm, strict=True)):
            beside = (np.minimum(x, extent - x) < FACE_MARGIN_MM).ravel()
            penalty[(slice(None),) * axis + (beside,)] = 1e3
        return penalty


def apply_along_axes(matrices: Sequence[FloatArray], array: FloatArray) -> FloatArray:
    """Multiply one `(out, in)` matrix along each axis of a `(D, H, W)` array."""
    for matrix in matrices:  # each product takes the first axis and appends the new one
        array = np.tensordot(array, matrix, axes=(0, 1))
    return array


def curve(control: Points, count: int = 36) -> Points:
    """A smooth curve through the control points, as `count` points."""
    spline = CubicSpline(np.linspace(0, 1, len(control)), control)
    return spline(np.linspace(0, 1, count))


def ellipsoid(space: Space, centre: Points, radii_mm: Points | TripleMm) -> FloatArray:
    """Approximate signed distance to an ellipsoid along the axes, on the coarse lattice."""
    d, h, w = (
        ((x - np.float32(c)) / np.float32(r)) ** 2
        for x, c, r in zip(space.coarse, centre, radii_mm, strict=True)
    )
    return (np.sqrt(d + h + w) - 1) * np.float32(min(radii_mm))


def tube(space: Space, line: Points, radius_mm: float) -> FloatArray:
    """Signed distance to a tube of constant radius, up to REACH_MM, on the coarse lattice."""
    distance = np.full(space.coarse_shape, REACH_MM, np.float32)
    reach_mm = radius_mm + REACH_MM
    near = tuple(
        slice(*np.searchsorted(x.ravel(), (low - reach_mm, high + reach_mm)))
        for x, low, high in zip(space.coarse, line.min(0), line.max(0), strict=True)
    )
    d, h, w = (x.ravel()[s] for x, s in zip(space.coarse, near, strict=True))
    squared = np.full((len(d), len(h), len(w)), np.inf, np.float32)
    for at_d, at_h, at_w in line.astype(np.float32):
        in_slice = (h[:, None] - at_h) ** 2 + (w - at_w) ** 2
        np.minimum(squared, ((d - at_d) ** 2)[:, None, None] + in_slice, out=squared)
    distance[near] = np.minimum(np.sqrt(squared) - np.float32(radius_mm), REACH_MM)
    return distance


def tapering_tube(
    space: Space, line: Points, radius: npt.NDArray[np.floating]
) -> tuple[FloatArray, FloatArray]:
    """Distance to a curve in units of its local radius, and that radius (coarse lattice)."""
    best = np.full(space.coarse_shape, np.inf, np.float32)
    local = np.ones_like(best)
    for point, scale in zip(line.astype(np.float32), radius.astype(np.float32), strict=True):
        d, h, w = (((x - c) / scale) ** 2 for x, c in zip(space.coarse, point, strict=True))
        squared = d + h + w
        closer = squared < best
        np.copyto(best, squared, where=closer)
        np.copyto(local, scale, where=closer)
    return np.sqrt(best), local


def coverage(distance: FloatArray, softness_mm: float = FINE_MM) -> FloatArray:
    """Share of each voxel that lies inside, in [0, 1]."""
    return np.clip(0.5 - distance / np.float32(softness_mm), 0, 1)


def level_of_volume(field: FloatArray, count: float) -> np.float32:
    """The level below which `count` voxels of the field lie, at least one."""
    k = int(np.clip(round(count), 1, field.size - 1))
    lower, upper = np.partition(field.ravel(), (k - 1, k))[k - 1 : k + 1]
    return np.float32((lower + upper) / 2)


def _lattice_noise(rng: np.random.Generator, extent_mm: TripleMm, scale_mm: float) -> FloatArray:
    lattice = rng.standard_normal(_shape(extent_mm, scale_mm), dtype=np.float32)
    return lattice * np.float32(1.35)  # interpolation takes away about that much


def _interpolate(field: FloatArray, shape: Triple, box: Box = WHOLE) -> FloatArray:
    matrices = [_spline_matrix(n, m)[s] for n, m, s in zip(field.shape, shape, box, strict=True)]
    return apply_along_axes(matrices, field)


@lru_cache(maxsize=256)
def _spline_matrix(n: int, m: int) -> FloatArray:
    """Cubic interpolation of `n` cell centres of the unit interval at `m` of them."""
    spline = make_interp_spline((np.arange(n) + 0.5) / n, np.eye(n), k=3)
    inside = np.clip((np.arange(m) + 0.5) / m, 0.5 / n, 1 - 0.5 / n)
    return spline(inside).astype(np.float32)


def _shape(extent_mm: TripleMm, step_mm: float) -> Triple:
    d, h, w = (max(4, round(e / step_mm)) for e in extent_mm)
    return d, h, w


def _positions(extent_mm: TripleMm, shape: Triple) -> Axes:
    d, h, w = (
        ((np.arange(n) + 0.5) * e / n).astype(np.float32)
        for n, e in zip(shape, extent_mm, strict=True)
    )
    return d[:, None, None], h[None, :, None], w[None, None, :]
