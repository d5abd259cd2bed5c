"""The answer to a DICOM series as DICOM: a SEG with the mask, an SR with the subtype.

Both belong to the patient and study of the source series and refer to it. The SEG's segments are
numbered as the labels are; whole pancreas is both together. No standard code names the subtypes
0, 1 and 2, so the SR takes codes of a local scheme, as PS3.3 section 8.2 provides; nothing is
kept in private elements.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from pancreas_mtl.data.files import atomic_path
from pancreas_mtl.data.images import to_source
from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference.pipeline import Source
from pancreas_mtl.interop.dicom_read import Stack, dicom_source, stack
from pancreas_mtl.interop.dicom_series import Series
from pancreas_mtl.types import CasePrediction, FloatArray, Label, LabelArray, Volume

logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of every module it copies
PROGRAM = "pancreas_mtl"
SCHEME = "99PANCREASMTL"  # schemes of local use begin with 99
SEG_SUFFIX, SR_SUFFIX = ".seg.dcm", ".sr.dcm"
_SEG_SERIES, _SR_SERIES = 9001, 9002  # series numbers, out of the way of the scanner's
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime"),
)


def seg_source(series: Series, models: Sequence[str]) -> Source:
    """The case of a series whose answer becomes DICOM; `models` are the bundles' digests."""
    write = partial(write_dicom, series=series, models=tuple(models))
    return replace(dicom_source(series), write=write)


def write_dicom(
    output_dir: Path,
    name: str,
    volume: Volume,
    prediction: CasePrediction,
    *,
    series: Series,
    models: Sequence[str],
) -> None:
    """Write `<name>.seg.dcm`, and `<name>.sr.dcm` where the model tells subtypes.

    Raises:
        CaseError: a header of the series does not allow it, or the files cannot be written.
    """
    ordered, probabilities = stack(series), prediction.subtype_probabilities
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would quote the patient's name
            headers = [_full_header(path) for path in ordered.files]
            seg = segmentation(headers, ordered, prediction.labels, models)
            objects = {SEG_SUFFIX: seg}
            if probabilities is not None:
                objects[SR_SUFFIX] = subtype_report(seg, probabilities, models)
    except (ValueError, TypeError, AttributeError) as error:  # of highdicom, on odd headers
        raise CaseError(
            f"{series.folder}: its headers allow no DICOM SEG ({' '.join(str(error).split())}): "
            "mend them, or take output_format=nifti"
        ) from None
    for suffix, dataset in objects.items():
        with atomic_path(output_dir / f"{name}{suffix}") as path:
            dataset.save_as(path)


def segmentation(
    headers: Sequence[Any], ordered: Stack, labels: LabelArray, models: Sequence[str]
) -> Any:
    """The SEG of canonical labels (D, H, W); a label without voxels keeps its description.

    Args:
        headers: of the source's slices, in the order of `ordered`.
        ordered: the source's files and grid.
        labels: the mask.
        models: digests of the bundles.
    """
    frames = to_source(labels, ordered.grid).transpose(2, 1, 0)  # slices, rows, columns
    columns_mm, rows_mm, slices_mm = np.linalg.norm(ordered.grid.affine[:3, :3], axis=0)
    return hd.seg.Segmentation(
        source_images=headers,
        pixel_array=np.ascontiguousarray(frames),
        segmentation_type="BINARY",
        segment_descriptions=_segments(models),
        pixel_measures=hd.PixelMeasuresSequence(
            pixel_spacing=(rows_mm, columns_mm),
            slice_thickness=slices_mm,
            spacing_between_slices=slices_mm,
        ),
        series_description=f"{PROGRAM} segmentation",
        **_identity(_SEG_SERIES, models),
    )


def _segments(models: Sequence[str]) -> list[Any]:
    """The descriptions of pancreas and lesion in SNOMED CT codes."""
    algorithm = hd.AlgorithmIdentificationSequence(
        name=PROGRAM,
        family=codes.DCM.ArtificialIntelligence,
        version=version("pancreas-mtl"),
        parameters={f"bundle{index}": digest for index, digest in enumerate(models)},
    )
    described = partial(
        hd.seg.SegmentDescription, algorithm_type="AUTOMATIC", algorithm_identification=algorithm
    )
    return [
        described(
            segment_number=int(Label.PANCREAS),
            segment_label="Pancreas without lesion",
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Pancreas,
        ),
        described(
            segment_number=int(Label.LESION),
            segment_label="Lesion",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            anatomic_regions=[codes.SCT.Pancreas],
        ),
    ]


def subtype_report(seg: Any, probabilities: FloatArray, models: Sequence[str]) -> Any:
    """The SR (TID 1500) of the subtype and its probabilities, about the lesion of a SEG."""
    device = DeviceObserverIdentifyingAttributes(
        uid=_device_uid(models), name=PROGRAM, manufacturer_name=PROGRAM, model_name=PROGRAM
    )
    report = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(codes.DCM.Device, device)
        ),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[_lesion_findings(seg, probabilities, models)],
    )
    return Comprehensive3DSR(
        evidence=[seg],
        content=report[0],
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(SCHEME, name="Subtypes of pancreas_mtl")],
        series_description=f"{PROGRAM} lesion subtype",
        **_identity(_SR_SERIES, models),
    )


def _lesion_findings(seg: Any, probabilities: FloatArray, models: Sequence[str]) -> Any:
    """The group of the lesion (TID 1411): one probability a subtype, and the most probable one."""
    source = SourceSeriesForSegmentation(seg.ReferencedSeriesSequence[0].SeriesInstanceUID)
    best = int(probabilities.argmax())
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=hd.UID(), identifier="lesion"),
        referenced_segment=ReferencedSegment(
            seg.SOPClassUID, seg.SOPInstanceUID, int(Label.LESION), source_series=source
        ),
        finding_type=codes.SCT.Lesion,
        finding_sites=[FindingSite(codes.SCT.Pancreas)],
        algorithm_id=AlgorithmIdentification(
            PROGRAM, version("pancreas-mtl"), [f"bundle {digest}" for digest in models]
        ),
        measurements=[
            Measurement(
                name=Code(f"P{subtype}", SCHEME, f"Probability of subtype {subtype}"),
                value=round(float(probability), 6),
                unit=codes.UCUM.NoUnits,
            )
            for subtype, probability in enumerate(probabilities)
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(
                name=Code("SUBTYPE", SCHEME, "Lesion subtype"),
                value=Code(f"S{best}", SCHEME, f"Subtype {best}"),
            )
        ],
    )


def _identity(series_number: int, models: Sequence[str]) -> dict[str, Any]:
    """Who made an object: what SEG and SR share."""
    return {
        "series_instance_uid": hd.UID(),
        "series_number": series_number,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": PROGRAM,
        "manufacturer_model_name": PROGRAM,
        "software_versions": version("pancreas-mtl"),
        "device_serial_number": _device_uid(models),
    }


def _device_uid(models: Sequence[str]) -> str:
    """The same for the same program and bundles."""
    return str(generate_uid(entropy_srcs=[PROGRAM, version("pancreas-mtl"), *models]))


def _full_header(path: Path) -> Any:
    """A slice's header, completed by elements that must be there but may be empty."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, "")
    return header
