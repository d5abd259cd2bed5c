"""A bundle for other runtimes: written beside its place, checked against torch, moved there."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from pancreas_mtl.data.files import atomic_folder, check_replaceable
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.card import CARD
from pancreas_mtl.interop import processing


class Format(NamedTuple):
    """Where a format is written, imported only when it is asked for, and the extra it needs."""

    module: str  # with FILES
    function: str  # (bundle, folder) -> parity
    extra: str


FORMATS = {
    "onnx": Format("onnx", "write_onnx", "onnx"),
    "openvino": Format("openvino", "write_openvino", "openvino"),
    "monai_bundle": Format("monai_bundle", "write_monai_bundle", "monai-bundle"),
}


def export_bundle(
    model: Path, output_dir: Path, *, format_name: str, overwrite: bool = False
) -> dict[str, Any]:
    """Write a bundle in another format, with `processing.json` and the model card.

    Args:
        model: a bundle folder.
        output_dir: new or empty, or with an export if `overwrite`; what is in it is replaced.
        format_name: a name in `FORMATS`.
        overwrite: replace an export.

    Returns:
        How far the export was found from torch, and the tolerance.

    Raises:
        UsageError: a choice that does not exist, an extra that is not installed, an `output_dir`
            that is not free.
        CaseError: the export disagrees with torch, or cannot be written; nothing is left behind.
    """
    if format_name not in FORMATS:
        raise UsageError(f"format={format_name}: choose one of {', '.join(FORMATS)}")
    marker = processing.FILE
    check_replaceable(output_dir, marker=marker, what="an export", overwrite=overwrite)
    bundle, chosen = load_bundle(model), FORMATS[format_name]
    try:
        writer = importlib.import_module(f"pancreas_mtl.interop.{chosen.module}")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"format={format_name}: {error}; pip install 'pancreas-mtl[{chosen.extra}]'"
        ) from None
    with atomic_folder(output_dir) as draft:
        parity: dict[str, Any] = getattr(writer, chosen.function)(bundle, draft)
        content = processing.processing(bundle, files=writer.FILES, parity=parity)
        (draft / processing.FILE).write_text(json.dumps(content, indent=2) + "\n")
        if (model / CARD).exists():
            shutil.copyfile(model / CARD, draft / CARD)
    return parity
