"""From HU in the source's grid to labels in the same grid and a subtype.

Three stages, so that a pipeline can overlap them: `prepare` (normalise, resample), `infer` (the
network, window by window, and back to the source's grid, slab by slab), `finish` (clean-up).
Calling the predictor does all three.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pancreas_mtl.data.images import canonical_shape
from pancreas_mtl.data.pool import free_ram_bytes
from pancreas_mtl.data.preprocess import prepare_image
from pancreas_mtl.data.resample import spline_orders, target_shape
from pancreas_mtl.errors import CaseError, LackOfMemoryError, UsageError
from pancreas_mtl.inference.bundle import Bundle, find_bundles, load_bundle
from pancreas_mtl.inference.calibration import (
    calibrated,
    conformal_set,
    fit_ensemble_temperature,
    stated_coverage,
)
from pancreas_mtl.inference.engines import Precision, make_engine
from pancreas_mtl.inference.maps import maps_at
from pancreas_mtl.inference.postprocess import clean_up, labels_at
from pancreas_mtl.inference.scores import ModelScores
from pancreas_mtl.inference.windows import MIRROR_AXES, WindowScores
from pancreas_mtl.types import (
    CasePrediction,
    FloatArray,
    LabelArray,
    SourceGrid,
    TripleMm,
    Volume,
)

RESAMPLING_BYTES = 8.0  # a voxel, before and after one axis

PresetName = Literal["accurate", "fast", "single"]


@dataclass(frozen=True)
class Preset:
    """How much work prediction does: axes to mirror, the step between windows, padding.

    A network that was trained without mirrored patches is not shown mirrored images. `pads`: an
    image that is smaller than a patch is padded to one, as in training and in nnU-Net; otherwise
    it goes through the network at its own size, which no preset does, as it costs too much.
    """

    mirror_axes: tuple[int, ...] = MIRROR_AXES
    step: float = 0.5
    pads: bool = True


PRESETS: dict[str, Preset] = {
    "accurate": Preset(),
    "fast": Preset(mirror_axes=(1, 2)),
    "single": Preset(mirror_axes=()),
}
"""Eight passes, four or one; what the fewer cost is in `docs/performance.md`."""


class Inferred(NamedTuple):
    """What the models found together, before the clean-up."""

    labels: LabelArray  # (D, H, W), in the source's grid
    raw_probabilities: list[FloatArray | None]  # (S,) of each model, before any temperature
    mask_entropy: float  # the mean of the models'
    maps: Mapping[str, npt.NDArray[Any]]  # (D, H, W) each, those that are wanted
    logits: FloatArray | None = None  # (C, d, h, w) of the first model, where asked for


class Predictor:
    """One bundle, or an ensemble of several whose probabilities are averaged.

    Args:
        bundles: trained models; they may differ in plan and head.
        preset: how much work to do.
        engine: "torch" or "openvino".
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: of the network.
        maps: which of `maps.MAPS` to make as well.
        keep_logits: keep the first model's logits in its predictions, at its plan's spacing.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        *,
        preset: Preset = PRESETS["accurate"],
        engine: str = "torch",
        device: str = "auto",
        precision: Precision = "auto",
        maps: Collection[str] = (),
        keep_logits: bool = False,
    ) -> None:
        self.bundles = list(bundles)
        self.keep_logits = keep_logits
        self.preset = preset
        self.maps = frozenset(maps)
        self.engines = [
            make_engine(engine, one.network, one.plan, device=device, precision=precision)
            for one in bundles
        ]
        voters = [one.calibration for one in bundles if one.network.has_subtype]
        self.ensemble_temperature = fit_ensemble_temperature(voters)
        self.conformal_coverage = stated_coverage(voters)

    @property
    def has_subtypes(self) -> bool:
        """Whether any model has a subtype head."""
        return any(bundle.network.has_subtype for bundle in self.bundles)

    @classmethod
    def from_bundle(
        cls,
        path: str | Path | Sequence[str | Path],
        *,
        preset: PresetName = "accurate",
        engine: str = "torch",
        device: str = "auto",
        precision: Precision = "auto",
        maps: Collection[str] = (),
    ) -> Predictor:
        """Load a bundle folder; a folder or a list of several becomes an ensemble.

        Raises:
            UsageError: a folder is no bundle of this version, the preset does not exist, or the
                engine cannot run here.
        """
        if preset not in PRESETS:
            raise UsageError(f"preset={preset}: choose one of {', '.join(PRESETS)}")
        paths = [path] if isinstance(path, str | Path) else list(path)
        if not paths or "" in paths:
            raise UsageError("model is empty: give a bundle folder, or a list of them")
        bundles = [load_bundle(one) for path in paths for one in find_bundles(Path(path))]
        return cls(
            bundles,
            preset=PRESETS[preset],
            engine=engine,
            device=device,
            precision=precision,
            maps=maps,
        )

    def __call__(self, image: npt.NDArray[np.floating], spacing_mm: TripleMm) -> CasePrediction:
        """Labels and subtype probabilities of one CT.

        Args:
            image: `(D, H, W)` HU in canonical orientation (see `types.py`).
            spacing_mm: of the image, `(D, H, W)`.

        Raises:
            CaseError: the image is not 3D or empty, has voxels that are not finite, or a spacing
                that is not positive.
        """
        array = np.asarray(image, dtype=np.float32)
        if array.ndim != 3 or array.size == 0 or not np.isfinite(array).all():
            raise CaseError(f"image of shape {array.shape}: needs three axes and finite voxels")
        if len(spacing_mm) != 3 or not all(0 < mm < np.inf for mm in spacing_mm):
            raise CaseError(f"spacing_mm={spacing_mm}: needs three positive numbers, (D, H, W)")
        grid = SourceGrid((array.shape[2], array.shape[1], array.shape[0]), np.eye(4))
        return self.predict(Volume(array, spacing_mm, grid))

    def predict(self, volume: Volume) -> CasePrediction:
        """All three stages on one volume."""
        return self.finish(self.infer(volume, self.prepare(volume)))

    def prepare(self, volume: Volume) -> list[FloatArray]:
        """The image as each model wants it; equal plans share one.

        Raises:
            CaseError: the image would be too large at a plan's spacing, for the free memory or for
                any.
        """
        prepared: dict[object, FloatArray] = {}
        for bundle in self.bundles:
            key = (bundle.plan.intensity, bundle.plan.spacing_mm)
            if key not in prepared:
                _check_memory(volume, bundle.plan.spacing_mm)
                prepared[key] = prepare_image(volume, *key)
        return [prepared[(b.plan.intensity, b.plan.spacing_mm)] for b in self.bundles]

    def infer(self, volume: Volume, images: Sequence[FloatArray]) -> Inferred:
        """Run every model on its image, and bring their answers together in the source's grid."""
        shape = canonical_shape(volume.source)  # its voxels may be gone by now
        orders = [
            spline_orders(bundle.plan.spacing_mm, volume.spacing_mm, order=1)
            for bundle in self.bundles
        ]
        with torch.inference_mode():
            scores = [self._scores(model, image) for model, image in enumerate(images)]
            labels = labels_at(scores, shape, orders=orders)
            for one in scores:
                one.complete()
            subtypes = [self._subtype(model, one) for model, one in enumerate(scores)]
            maps = maps_at([one.maps for one in scores], shape, orders=orders)
        entropies = [one.entropy.value for one in scores]
        logits = np.concatenate(scores[0].kept, axis=1) if scores[0].kept else None
        return Inferred(labels, subtypes, float(np.mean(entropies)), maps, logits)

    def finish(self, inferred: Inferred) -> CasePrediction:
        """Apply the bundles' calibrations; labels are cleaned up where all of them ask for it."""
        votes = [bundle.calibration for bundle in self.bundles]
        labels = clean_up(
            inferred.labels,
            largest_pancreas=all(one.largest_pancreas for one in votes),
            largest_lesion=all(one.largest_lesion for one in votes),
        )
        answers = zip(inferred.raw_probabilities, votes, strict=True)
        known = [(raw, vote) for raw, vote in answers if raw is not None]
        raw, their_votes = [raw for raw, _ in known], [vote for _, vote in known]
        return CasePrediction(
            labels=labels,
            subtype_probabilities=calibrated(
                raw, their_votes, temperature=self.ensemble_temperature
            )
            if known
            else None,
            conformal_set=conformal_set(raw, their_votes),
            mask_entropy=inferred.mask_entropy,
            maps=inferred.maps,
            logits=inferred.logits,
        )

    def _scores(self, model: int, image: FloatArray) -> ModelScores:
        bundle, engine = self.bundles[model], self.engines[model]
        looks = "attention" in self.maps and bundle.network.has_subtype
        windows = WindowScores(
            engine,
            torch.from_numpy(image).to(engine.device),
            patch_size=bundle.plan.patch_size,
            divisor=None if self.preset.pads else bundle.plan.reductions[-1],
            step=self.preset.step,
            mirror_axes=[axis for axis in self.preset.mirror_axes if axis in bundle.mirror_axes],
            look=engine.look if looks else None,
        )
        return ModelScores(
            windows,
            as_probabilities=len(self.bundles) > 1,
            temperature=bundle.calibration.mask_temperature,
            lesion_bias=bundle.calibration.lesion_bias,
            keeps_lesion="lesion_candidates" in self.maps,
            keeps_logits=self.keep_logits and model == 0,
        )

    def _subtype(self, model: int, scores: ModelScores) -> FloatArray | None:
        """Probabilities (S,), the mean over the mirrored views; None without a subtype head."""
        evidence = scores.windows.evidence  # of all windows, also those nobody has asked for yet
        if not self.bundles[model].network.has_subtype:
            return None
        views = self.engines[model].classify(evidence).softmax(dim=1)  # (V, S)
        mean: FloatArray = views.mean(dim=0).cpu().numpy()
        return mean


def _check_memory(volume: Volume, spacing_mm: TripleMm) -> None:
    """Refuse one case rather than let the system kill them all."""
    d, h, w = volume.array.shape
    voxels = max(math.prod(target_shape((d, h, w), volume.spacing_mm, spacing_mm)), d * h * w)
    needed, free = voxels * RESAMPLING_BYTES, free_ram_bytes()
    if needed > free:
        raise LackOfMemoryError(
            f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free: free memory, or "
            "crop the image around the pancreas"
        )
