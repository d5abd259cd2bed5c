"""What is done to each patch, drawn from its seed alone; nothing here sees a voxel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pancreas_mtl.errors import UsageError

NUM_DRAWS = 25  # uniform numbers per patch


@dataclass(frozen=True)
class AugmentConfig:
    """How often and how strongly patches are changed; the defaults change nothing.

    A `_p` is the probability that a patch is changed so. A `_ratio` r >= 1 is the largest factor:
    the factor is drawn from [1/r, r], evenly in its logarithm, so that more and less are equally
    likely. Noise is in units of the normalised image.
    """

    flip_p: float = 0.0  # per axis
    rotation_p: float = 0.0
    rotation_deg: float = 0.0  # up to so much about each of the three axes
    scale_p: float = 0.0
    scale_ratio: float = 1.0  # size of what is seen
    noise_p: float = 0.0
    noise_std: float = 0.0  # drawn from [0, this]
    blur_p: float = 0.0
    blur_sigma_vox: float = 0.0  # drawn from [this / 2, this] for each axis
    brightness_p: float = 0.0
    brightness_ratio: float = 1.0  # multiplies the values
    contrast_p: float = 0.0
    contrast_ratio: float = 1.0  # multiplies the distance from the image's mean
    coarse_p: float = 0.0
    coarse_ratio: float = 1.0  # size of the simulated voxels; drawn from [1, this]
    gamma_inverted_p: float = 0.0  # gamma of the negative
    gamma_p: float = 0.0
    gamma_ratio: float = 1.0  # exponent of both gammas

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: a value out of its range.
        """
        for name, value in asdict(self).items():
            low = 1.0 if name.endswith("_ratio") else 0.0
            high = 1.0 if name.endswith("_p") else 180.0 if name.endswith("_deg") else math.inf
            if not (isinstance(value, int | float) and low <= value <= high and value < math.inf):
                raise UsageError(
                    f"augment.{name} is {value!r}: give a number from {low:g} to {high:g}"
                )


class Parameters(NamedTuple):
    """What is done to each patch, on the CPU; a ratio of 1, else 0, leaves it as it is."""

    flip: Tensor  # (B, 3) bool, per axis
    rotation_rad: Tensor  # (B, 3) rotation vector: its direction the axis, its length the angle
    scale: Tensor  # (B,) size of what is seen
    noise_std: Tensor  # (B,)
    noise_seed: Tensor  # (B,) int64
    blur_sigma_vox: Tensor  # (B, 3)
    brightness: Tensor  # (B,) ratio
    contrast: Tensor  # (B,) ratio
    coarse: Tensor  # (B,) ratio
    gamma_inverted: Tensor  # (B,) exponent
    gamma: Tensor  # (B,) exponent

    def of(self, patch: int) -> Parameters:
        """Those of one patch, without the leading B."""
        return Parameters(*(field[patch] for field in self))


def sample(config: AugmentConfig, seeds: Tensor) -> Parameters:
    """Draw the parameters of each patch from its seed, `(B,)` int64 >= 0, whatever the device."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    uniform = torch.stack([torch.rand(NUM_DRAWS, generator=g) for g in generators])
    draws = iter(uniform.unbind(1))
    return Parameters(
        flip=_take(3, draws) < config.flip_p,
        rotation_rad=_chosen(
            draws, config.rotation_p, math.radians(config.rotation_deg) * (2 * _take(3, draws) - 1)
        ),
        scale=_ratio(draws, config.scale_p, config.scale_ratio),
        noise_std=_chosen(draws, config.noise_p, config.noise_std * next(draws)),
        noise_seed=torch.stack([torch.randint(2**62, (), generator=g) for g in generators]),
        blur_sigma_vox=_chosen(
            draws, config.blur_p, config.blur_sigma_vox * (1 + _take(3, draws)) / 2
        ),
        brightness=_ratio(draws, config.brightness_p, config.brightness_ratio),
        contrast=_ratio(draws, config.contrast_p, config.contrast_ratio),
        coarse=_chosen(draws, config.coarse_p, config.coarse_ratio ** next(draws), otherwise=1.0),
        gamma_inverted=_ratio(draws, config.gamma_inverted_p, config.gamma_ratio),
        gamma=_ratio(draws, config.gamma_p, config.gamma_ratio),
    )


def _take(count: int, draws: Iterator[Tensor]) -> Tensor:
    return torch.stack([next(draws) for _ in range(count)], dim=1)  # (B, count)


def _chosen(draws: Iterator[Tensor], p: float, values: Tensor, *, otherwise: float = 0.0) -> Tensor:
    """`values`, `(B,)` or `(B, 3)`, in a share `p` of the patches, else `otherwise`."""
    chosen = next(draws) < p
    return torch.where(chosen.view(-1, *[1] * (values.ndim - 1)), values, otherwise)


def _ratio(draws: Iterator[Tensor], p: float, largest: float) -> Tensor:
    return _chosen(draws, p, largest ** (2 * next(draws) - 1), otherwise=1.0)
