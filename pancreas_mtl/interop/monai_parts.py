"""What an exported MONAI bundle needs beside MONAI's own parts.

That is its network, two transforms between grids, an inferer with two outputs, and the table of
subtypes.

The export copies this module, and those of the package that it imports, into the bundle's folder
`scripts/`; so a bundle runs where only MONAI is installed, and computes with the very same code.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from monai.transforms.spatial.array import Orientation
from monai.transforms.transform import MapTransform
from nibabel.orientations import aff2axcodes
from torch import Tensor

from pancreas_mtl.data.resample import resample, spline_orders, target_shape
from pancreas_mtl.inference.calibration import with_temperature
from pancreas_mtl.inference.postprocess import WholeScores, clean_up, labels_at
from pancreas_mtl.inference.windows import predict_windows
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import Intensity, Plan, Triple, TripleMm


def multitask_network(plan: Mapping[str, Any], model: Mapping[str, Any]) -> MultitaskUNet:
    """The network that plain values of a plan and of `NetworkConfig` describe."""
    values = {key: _tuples(value) for key, value in plan.items()}
    values["intensity"] = Intensity(**plan["intensity"])
    settings = {key: _tuples(value) for key, value in model.items()}
    return MultitaskUNet(Plan(**values), NetworkConfig(**settings))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


class ToSpacingd(MapTransform):
    """Resample an image `(1, D, H, W)`, oriented SPL, to the plan's spacing.

    Its own affine and shape are kept in `meta["source_affine"]` and `meta["source_shape"]`.

    Args:
        keys: of the images.
        spacing_mm: `(D, H, W)`.
        order: of the spline.
    """

    def __init__(self, keys: KeysCollection, spacing_mm: TripleMm, order: int) -> None:
        super().__init__(keys)
        self.spacing_mm = _three(spacing_mm)
        self.order = order

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """A copy of `data` with resampled images."""
        done = dict(data)
        for key in self.key_iterator(done):
            image = done[key]
            array, spacing_mm = image.numpy()[0], _spacing_mm(image)
            shape = target_shape(array.shape, spacing_mm, self.spacing_mm)
            orders = spline_orders(spacing_mm, self.spacing_mm, order=self.order)
            resampled = torch.from_numpy(resample(array, shape, orders=orders))[None]
            meta = {
                **image.meta,
                "source_affine": image.affine,
                "source_shape": torch.tensor(array.shape),
            }
            done[key] = MetaTensor(resampled, meta=meta)
            done[key].affine = _scaled(image.affine, array.shape, shape)
        return done


class ToSourceGridd(MapTransform):
    """From logits `(C, d, h, w)` at the plan's spacing to labels `(1, i, j, k)` of the file.

    Args:
        keys: of the logits.
        image_key: of the image as `ToSpacingd` left it.
        spacing_mm: of the plan.
        lesion_bias: added to the lesion's logit.
        largest_pancreas: keep only the largest component of the whole pancreas.
        largest_lesion: keep only the largest lesion.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str,
        spacing_mm: TripleMm,
        *,
        lesion_bias: float,
        largest_pancreas: bool,
        largest_lesion: bool,
    ) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.spacing_mm = _three(spacing_mm)
        self.lesion_bias = lesion_bias
        self.largest = {"largest_pancreas": largest_pancreas, "largest_lesion": largest_lesion}

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """A copy of `data` with labels in the place of logits."""
        done = dict(data)
        meta = done[self.image_key].meta
        affine = meta["source_affine"]
        d, h, w = (int(n) for n in meta["source_shape"])
        file_axes = "".join(aff2axcodes(np.asarray(meta["original_affine"])))
        source = MetaTensor(torch.zeros(1, d, h, w), affine=affine)
        orders = spline_orders(self.spacing_mm, _spacing_mm(source), order=1)
        for key in self.key_iterator(done):
            scores = WholeScores(done[key].cpu().numpy(), self.lesion_bias)
            labels = clean_up(labels_at([scores], (d, h, w), orders=[orders]), **self.largest)
            oriented = MetaTensor(torch.from_numpy(labels)[None], meta=dict(meta))
            oriented.affine = affine
            done[key] = Orientation(axcodes=file_axes, labels=None)(oriented)
        return done


class MultitaskInferer(Inferer):
    """Windows over the whole case, from a network with two answers.

    Args:
        patch_size: of a window; smaller images are padded to it.
        step: distance between windows as a share of their size.
        mirror_axes: of `(D, H, W)`.
        subtype_temperature: see `Calibration`.
    """

    def __init__(
        self,
        patch_size: Triple,
        step: float,
        mirror_axes: Sequence[int],
        subtype_temperature: float,
    ) -> None:
        self.windows: dict[str, Any] = {
            "patch_size": _three(patch_size),
            "step": step,
            "mirror_axes": tuple(mirror_axes),
        }
        self.subtype_temperature = subtype_temperature

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """`segmentation`: logits (1, C, D, H, W); `subtype`: probabilities (1, S).

        Args:
            inputs: one case, (1, 1, D, H, W).
            network: a `MultitaskUNet`.
            args: not used.
            kwargs: not used.
        """
        image = torch.as_tensor(inputs)[0, 0]
        whole = predict_windows(network.window, image, **self.windows)
        views = network.classify(whole.evidence).softmax(dim=1)
        subtype = with_temperature(views.mean(0).cpu().numpy(), self.subtype_temperature)
        return {
            "segmentation": whole.logits[None],
            "subtype": torch.from_numpy(subtype)[None],
        }


class SaveSubtyped(MapTransform):
    """Add a row with a case's subtype probabilities to `subtype_probabilities.csv`.

    Args:
        keys: of the probabilities (S,).
        image_key: of the image, whose file names the case.
        output_dir: of the table.
    """

    def __init__(self, keys: KeysCollection, image_key: str, output_dir: str) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.path = Path(output_dir) / "subtype_probabilities.csv"
        self.started = False

    def __call__(self, data: Mapping[Any, Any]) -> Mapping[Any, Any]:
        """`data` as it is."""
        name = case_filename(data[self.image_key].meta)["subject"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a" if self.started else "w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            for key in self.key_iterator(dict(data)):
                row = [f"{float(p):.6f}" for p in data[key]]
                if not self.started:
                    table.writerow(["Names", *(f"p{s}" for s in range(len(row)))])
                table.writerow([f"{name}.nii.gz", *row])
                self.started = True
        return data


def case_filename(meta: Mapping[str, Any], saver: Any = None) -> dict[str, str]:
    """The name under which `SaveImage` saves a case: its file's without `_0000`."""
    stem = re.sub(r"\.nii(\.gz)?$", "", Path(str(meta["filename_or_obj"])).name, flags=re.I)
    return {"subject": re.sub(r"(?<=.)_0000$", "", stem)}


def _three(values: Sequence[Any]) -> Any:
    d, h, w = values
    return d, h, w


def _spacing_mm(image: MetaTensor) -> TripleMm:
    spacing_mm: TripleMm = _three([float(mm) for mm in image.pixdim])
    return spacing_mm


def _scaled(affine: Tensor, shape: Sequence[int], new_shape: Sequence[int]) -> Tensor:
    """The affine of a grid with the same corners and another shape."""
    ratio = np.array(shape) / np.array(new_shape)
    scale = np.diag([*ratio, 1.0])
    scale[:3, 3] = (ratio - 1) / 2
    return affine @ torch.from_numpy(scale).to(affine)
