"""An nnU-Net v2 checkpoint of the plain U-Net becomes a bundle, exactly.

nnU-Net (doi:10.1038/s41592-020-01008-z) keeps `plans.json`, `dataset.json` and a folder per fold in
the folder of a trained model. The weights map one to one, but for two details. Biases of
convolutions that an instance normalisation follows have no effect and fall away. And where nnU-Net
transposes the image, the kernels are transposed back instead.

nnU-Net reads voxels in the order in which a file stores them, this project in the patient's axes.
The two agree on files stored as "LPS", as nearly all CTs are. nnU-Net crops an image to its voxels
that are not 0 before it resamples; the two agree where those reach all its sides, as in CT, whose
air is about -1000 HU, unless it was padded with zeros.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pancreas_mtl.data.files import check_replaceable, reason
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.bundle import WEIGHTS, save_bundle
from pancreas_mtl.interop.nnunet_plans import NnunetPlan, in_image_order, read_plan
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import Triple

MODEL = NetworkConfig(head="none", stages=(0,), hidden=0, dropout=0.0)
# What nnU-Net pickles beside tensors and plain types: scalars of its training log.
_SCALAR = np.float64(0).__reduce__()[0]
ALLOWED: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # the name before numpy 2
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")),
]
OTHER = "give another checkpoint, or train it again"
SAME_MODEL = "give plans.json and checkpoint of one model"


def import_nnunet(
    model_folder: Path, fold: int | str, checkpoint: str, output_dir: Path, *, overwrite: bool
) -> dict[str, Any]:
    """Write the bundle of one nnU-Net checkpoint and return the facts about its origin.

    Args:
        model_folder: with `plans.json`, `dataset.json` and `fold_<fold>/<checkpoint>`.
        fold: a number, or "all".
        checkpoint: a file name, such as `checkpoint_final.pth`.
        output_dir: becomes the bundle.
        overwrite: whether a bundle in `output_dir` may be replaced.

    Raises:
        UsageError: a file is missing, damaged or not plain data, the model does what this project's
            predictor does not, or `output_dir` holds anything but a bundle; nothing is written.
    """
    check_replaceable(output_dir, marker=WEIGHTS, what="a bundle", overwrite=overwrite)
    path = model_folder / f"fold_{fold}" / checkpoint
    content = read_checkpoint(path)
    try:
        start, weights = content["init_args"], dict(content["network_weights"])
        mirrored = content.get("inference_allowed_mirroring_axes") or ()
        origin = {
            "dataset": str(start["dataset_json"].get("name", model_folder.parent.name)),
            "configuration": str(start["configuration"]),
            "trainer": str(content["trainer_name"]),
            "fold": str(fold),
            "checkpoint": checkpoint,
            "epochs": int(content["current_epoch"]),
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{path}: not a checkpoint of nnU-Net v2 ({error!r}): {OTHER}") from None
    found = read_plan(model_folder, str(origin["configuration"]))
    config = {
        "model": {**asdict(MODEL), "stages": list(MODEL.stages)},
        "mirror_axes": sorted(found.transpose_forward[axis] for axis in mirrored),
        "nnunet": origin,
    }
    converted = convert_weights(weights, found, path)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    save_bundle(output_dir, converted, found.plan, config)
    return origin


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint without running code from it.

    Raises:
        UsageError: it is missing or damaged, or holds anything but tensors, plain types and the
            numpy scalars of nnU-Net's log.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{path}: not found; check model_folder, fold and checkpoint") from None
    except pickle.UnpicklingError as error:
        said = str(error).partition("WeightsUnpickler error:")[2] or str(error)
        said = " ".join(said.split(". ")[0].split())
        raise UsageError(
            f"{path}: refused: it is damaged, or holds more than numbers and plain data "
            f"({said}); {OTHER}"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise UsageError(f"{path}: damaged ({reason(error)}): {OTHER}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a checkpoint of nnU-Net v2 (no dictionary): {OTHER}")
    return content


def convert_weights(
    weights: Mapping[str, Tensor], found: NnunetPlan, source: Path
) -> dict[str, Tensor]:
    """nnU-Net's state dict as one of `MultitaskUNet` without subtype head.

    Raises:
        UsageError: a weight is missing, of another shape, or one too many.
    """
    theirs = {_plain_name(name): tensor for name, tensor in weights.items() if not _copy(name)}
    wanted = MultitaskUNet(found.plan, MODEL).state_dict()
    converted = {}
    for ours, name in weight_names(len(found.plan.channels)):
        if name not in theirs:
            raise UsageError(f"{source}: weight {name} is missing; {SAME_MODEL}")
        turned = _in_image_order(theirs.pop(name), found.transpose_forward)
        converted[ours] = _checked(turned, wanted[ours], name, source)
    left = [name for name in theirs if not name.endswith(".conv.bias")]
    if left:
        raise UsageError(
            f"{source}: weight {left[0]} has no place in a plain U-Net of this plan; {SAME_MODEL}"
        )
    return converted


def weight_names(stages: int) -> Iterator[tuple[str, str]]:
    """Pairs of this project's and nnU-Net's name of every weight of a U-Net with so many stages."""
    encoder = ["input_block", *(f"downsamples.{s}" for s in range(stages - 2)), "bottleneck"]
    for stage, block in enumerate(encoder):
        yield from _block(block, f"encoder.stages.{stage}.0.convs")
    for up in range(stages - 1):
        yield from _block(f"upsamples.{up}.conv_block", f"decoder.stages.{up}.convs")
        for kind in ("weight", "bias"):
            yield f"upsamples.{up}.transp_conv.conv.{kind}", f"decoder.transpconvs.{up}.{kind}"
            head = f"segmentation_heads.{stages - 2 - up}.conv.conv.{kind}"
            yield head, f"decoder.seg_layers.{up}.{kind}"


def _block(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for conv in (1, 2):
        yield f"{ours}.conv{conv}.conv.weight", f"{theirs}.{conv - 1}.conv.weight"
        for kind in ("weight", "bias"):
            yield f"{ours}.norm{conv}.{kind}", f"{theirs}.{conv - 1}.norm.{kind}"


def _plain_name(name: str) -> str:
    """Without what torch.compile and DataParallel put in front."""
    return name.removeprefix("module.").removeprefix("_orig_mod.")


def _copy(name: str) -> bool:
    """Whether nnU-Net lists this weight a second time under another name."""
    return ".all_modules." in name or "decoder.encoder." in name


def _in_image_order(tensor: Tensor, transpose_forward: Triple) -> Tensor:
    """A kernel (O, I, a, b, c) along nnU-Net's axes as (O, I, D, H, W); others as they are."""
    if tensor.ndim != 5:
        return tensor
    return tensor.permute(0, 1, *in_image_order((2, 3, 4), transpose_forward))


def _checked(tensor: Tensor, wanted: Tensor, name: str, source: Path) -> Tensor:
    """The weight, if it has the shape that the plan asks for."""
    if tensor.shape != wanted.shape:
        raise UsageError(
            f"{source}: weight {name} has shape {tuple(tensor.shape)}, and plans.json asks for "
            f"{tuple(wanted.shape)}; {SAME_MODEL}"
        )
    return tensor.float()
