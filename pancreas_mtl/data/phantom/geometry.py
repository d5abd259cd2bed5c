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
Points = npt.NDArray[np.float64]  # (n, 3), positions


@dataclass(frozen=True)
class Space:
    """A crop in millimetres with its coarse and fine lattices."""

    extent_mm: TripleMm

    @property
    def fine_shape(self) -> Triple:
        """Voxels of the lattice in which the anatomy is drawn."""
        return _shape(self.extent_mm, FINE_MM)

    @property
    def fine_ml(self) -> float:
        """Volume of one fine voxel."""
        return float(np.prod(self.extent_mm) / np.prod(self.fine_shape)) / 1000

    @cached_property
    def coarse(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Positions of the coarse lattice, ready to broadcast."""
        return _positions(self.extent_mm, COARSE_MM)

    @cached_property
    def fine(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Positions of the fine lattice, ready to broadcast."""
        return _positions(self.extent_mm, FINE_MM)

    def at(self, d: float, h: float, w: float) -> npt.NDArray[np.float64]:
        """The position at fractions of the crop's edges."""
        return np.array([d, h, w]) * self.extent_mm

    def refine(self, field: FloatArray) -> FloatArray:
        """A lattice of any pitch over this crop, interpolated to the fine one."""
        matrices = [
            _spline_matrix(n, m) for n, m in zip(field.shape, self.fine_shape, strict=True)
        ]
        return apply_along_axes(matrices, field)

    def noise(self, rng: np.random.Generator, scale_mm: float) -> FloatArray:
        """Smooth noise of about unit variance on the fine lattice; bumps of about `scale_mm`."""
        lattice = rng.standard_normal(_shape(self.extent_mm, scale_mm), dtype=np.float32)
        return self.refine(lattice * 1.35)

    def coarse_noise(self, rng: np.random.Generator, scale_mm: float) -> FloatArray:
        """The same on the coarse lattice."""
        lattice = rng.standard_normal(_shape(self.extent_mm, scale_mm), dtype=np.float32)
        shape = _shape(self.extent_mm, COARSE_MM)
        matrices = [_spline_matrix(n, m) for n, m in zip(lattice.shape, shape, strict=True)]
        return apply_along_axes(matrices, lattice * 1.35)


def apply_along_axes(matrices: Sequence[FloatArray], array: FloatArray) -> FloatArray:
    """Multiply one `(out, in)` matrix along each axis of a `(D, H, W)` array."""
    result = array.astype(np.float32, copy=False)
    for matrix in matrices:  # each product moves the next axis to the front
        result = np.tensordot(result, matrix, axes=(0, 1))
    return result


def ellipsoid(space: Space, centre: npt.NDArray[np.float64], radii_mm: TripleMm) -> FloatArray:
    """Approximate signed distance to an ellipsoid along the axes, on the coarse lattice."""
    scaled = [
        ((x - c) / r) ** 2 for x, c, r in zip(space.coarse, centre, radii_mm, strict=True)
    ]
    return (np.sqrt(scaled[0] + scaled[1] + scaled[2]) - 1) * np.float32(min(radii_mm))


def curve(control: Points, count: int) -> Points:
    """A smooth curve through the control points, `count` points evenly spaced in its parameter."""
    knots = np.linspace(0, 1, len(control))
    return CubicSpline(knots, control)(np.linspace(0, 1, count))


def tube(
    space: Space, line: Points, radius_mm: npt.NDArray[np.float64]
) -> tuple[FloatArray, FloatArray]:
    """Distance to a curve in units of its local radius, and that radius (coarse lattice)."""
    best = np.full(_shape(space.extent_mm, COARSE_MM), np.inf, np.float32)
    local = np.zeros_like(best)
    for point, radius in zip(line.astype(np.float32), radius_mm.astype(np.float32), strict=True):
        d, h, w = (((x - c) / radius) ** 2 for x, c in zip(space.coarse, point, strict=True))
        squared = d + h + w
        closer = squared < best
        best[closer] = squared[closer]
        local[closer] = radius
    return np.sqrt(best), local


def tube_distance(space: Space, line: Points, radius_mm: float) -> FloatArray:
    """Signed distance to a tube of constant radius, on the coarse lattice."""
    relative, _ = tube(space, line, np.full(len(line), radius_mm))
    return (relative - 1) * np.float32(radius_mm)


def coverage(distance: FloatArray, softness_mm: float = FINE_MM) -> FloatArray:
    """Share of each voxel that lies inside, in [0, 1]."""
    return np.clip(0.5 - distance / np.float32(softness_mm), 0, 1)


def _shape(extent_mm: TripleMm, step_mm: float) -> Triple:
    d, h, w = (max(4, round(e / step_mm)) for e in extent_mm)
    return d, h, w


def _positions(extent_mm: TripleMm, step_mm: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    shape = _shape(extent_mm, step_mm)
    d, h, w = (
        ((np.arange(n) + 0.5) * e / n).astype(np.float32)
        for n, e in zip(shape, extent_mm, strict=True)
    )
    return d[:, None, None], h[None, :, None], w[None, None, :]


@lru_cache(maxsize=256)
def _spline_matrix(n: int, m: int) -> FloatArray:
    """Cubic interpolation of `n` cell centres of an interval at `m` of them."""
    spline = make_interp_spline((np.arange(n) + 0.5) / n, np.eye(n), k=3)
    inside = np.clip((np.arange(m) + 0.5) / m, 0.5 / n, 1 - 0.5 / n)
    return spline(inside).astype(np.float32)
