"""Augments batches of patches on the training device.

Three steps, one module each: `parameters` draws what is done to every patch from its seed alone,
`spatial` turns, scales, crops and flips image and mask together, `intensity` changes the image.
After nnU-Net's training augmentation, doi:10.1038/s41592-020-01008-z, with rotation and scaling in
millimetres instead of voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pancreas_mtl.data.augment.intensity import change_intensity
from pancreas_mtl.data.augment.parameters import AugmentConfig, Parameters, sample
from pancreas_mtl.data.augment.spatial import transform, voxel_matrices
from pancreas_mtl.data.resample import spline_orders
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import Batch, Triple, TripleMm

__all__ = ["Augment", "AugmentConfig", "Parameters", "sample"]


class Augment:
    """From a Batch to an augmented Batch of `patch_size`, on the batch's device, in float32.

    What happens to a patch depends on its seed and its voxels alone, not on its batch. Patches may
    come larger than `patch_size`, so that turning and shrinking find voxels beyond the patch;
    where there are none, the image is 0 (its mean) and the mask background, or UNKNOWN in a patch
    without reference. Along an axis so coarse that resampling treats it apart, nothing is
    interpolated: rotation and scaling stay in plane, as nnU-Net's "dummy 2D".

    Args:
        config: how often and how strongly.
        patch_size: what the network takes.
        spacing_mm: of the patches.
    """

    def __init__(self, config: AugmentConfig, *, patch_size: Triple, spacing_mm: TripleMm) -> None:
        self.config = config
        self.patch_size = patch_size
        self.spacing_mm = spacing_mm
        self.axes = spline_orders(spacing_mm, spacing_mm, order=1)  # 0: too coarse to interpolate

    def __call__(self, batch: Batch) -> Batch:
        """Augment a batch; it waits for the device to read seeds, and where labels lie."""
        return self.apply(batch, sample(self.config, batch.seed))

    @torch.no_grad()
    def apply(self, batch: Batch, parameters: Parameters) -> Batch:
        """Do to each patch what its row of `parameters` says; `batch` itself is left as it is.

        `lesion_vox` grows with the scale, so that it goes on counting the lesion of the whole case.

        Raises:
            UsageError: the patches are smaller than `patch_size`.
        """
        read_size = tuple(batch.image.shape[2:])
        if any(n < k for n, k in zip(read_size, self.patch_size, strict=True)):
            raise UsageError(
                f"patches of {read_size} voxels are smaller than the patch size {self.patch_size}: "
                "read them with a margin of at least 1"
            )
        matrices = voxel_matrices(parameters, self.spacing_mm, self.axes)
        growth = parameters.scale.to(batch.lesion_vox) ** sum(self.axes)
        with torch.autocast(batch.image.device.type, enabled=False):
            patches = [
                self._apply_to_one(image, mask, matrices[i], parameters.of(i))
                for i, (image, mask) in enumerate(zip(batch.image, batch.mask, strict=True))
            ]
        images, masks = zip(*patches, strict=True)
        return batch._replace(
            image=torch.stack(images), mask=torch.stack(masks), lesion_vox=batch.lesion_vox * growth
        )

    def _apply_to_one(
        self, image: Tensor, mask: Tensor, matrix: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        flips: list[bool] = parameters.flip.tolist()
        image, mask = transform(image, mask, matrix=matrix, flips=flips, size=self.patch_size)
        return change_intensity(image, parameters, axes=self.axes), mask
