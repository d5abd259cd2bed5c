"""From anatomy to a scan: slices and pixels with partial volume, a point spread, and noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from pancreas_mtl.data.phantom.geometry import apply_along_axes
from pancreas_mtl.types import FloatArray, Triple, TripleMm

IN_PLANE_BLUR_MM = 0.9  # aperture of the soft-tissue kernel
NOISE_CORRELATION_MM = 0.55  # of the noise in the plane
SAMPLES = 7  # across one aperture
HU_RANGE = (-1024, 3071)


def sample(anatomy: FloatArray, shape: Triple, spacing_mm: TripleMm) -> FloatArray:
    """The anatomy as the scanner's voxels average it; both span the same crop."""
    apertures = (spacing_mm[0], *(max(s, IN_PLANE_BLUR_MM) for s in spacing_mm[1:]))
    matrices = [
        _averaging_matrix(n, m, aperture / (m * spacing))
        for n, m, aperture, spacing in zip(anatomy.shape, shape, apertures, spacing_mm, strict=True)
    ]
    return apply_along_axes(matrices, anatomy)


def noise(
    rng: np.random.Generator, shape: Triple, spacing_mm: TripleMm, std_hu: float
) -> FloatArray:
    """Noise that is correlated in the plane, as filtered back-projection leaves it."""
    result = rng.standard_normal(shape, dtype=np.float32)
    for axis in (1, 2):
        result = gaussian_filter1d(result, NOISE_CORRELATION_MM / spacing_mm[axis], axis=axis)
    return result * np.float32(std_hu / max(float(result.std()), 1e-6))


def to_hu(image: FloatArray) -> npt.NDArray[np.int16]:
    """Whole Hounsfield units in the range that scanners store."""
    return np.clip(np.rint(image), *HU_RANGE).astype(np.int16)


def _averaging_matrix(n: int, m: int, aperture: float) -> FloatArray:
    """Mean of `n` cells of the unit interval over an aperture around each of `m` cell centres."""
    centres = (np.arange(m) + 0.5) / m
    matrix = np.zeros((m, n))
    rows = np.arange(m)
    for offset in (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5:
        position = np.clip((centres + offset * aperture) * n - 0.5, 0, n - 1)
        low = np.minimum(position.astype(int), n - 2)
        matrix[rows, low] += (1 - (position - low)) / SAMPLES
        matrix[rows, low + 1] += (position - low) / SAMPLES
    return matrix.astype(np.float32)
