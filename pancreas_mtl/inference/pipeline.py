"""Predicts many cases: the next is read while this one is computed and the last one is written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from pancreas_mtl.data.checks import intensity_doubts
from pancreas_mtl.data.images import (
    geometry_warnings,
    read_image,
    write_mask,
    write_volume,
)
from pancreas_mtl.data.names import case_name, name_problem
from pancreas_mtl.data.pool import progress
from pancreas_mtl.errors import CaseError, LackOfMemoryError
from pancreas_mtl.inference.predictor import Inferred, Predictor
from pancreas_mtl.inference.writer import CaseRecord, append, discard
from pancreas_mtl.types import CasePrediction, FloatArray, Volume

log = logging.getLogger(__name__)
T = TypeVar("T")
Warn = Callable[[str], None]
AfterCase = Callable[[str, Volume, CasePrediction], None]
Write = Callable[[Path, str, Volume, CasePrediction], None]


def write_nifti(output_dir: Path, name: str, volume: Volume, prediction: CasePrediction) -> None:
    """Write `<name>.nii.gz` in the grid of the source."""
    write_mask(output_dir / f"{name}.nii.gz", prediction.labels, volume.source)


@dataclass(frozen=True)
class Source:
    """One case to predict: its name, where it lies, how it is read and its mask written."""

    name: str
    path: Path
    read: Callable[[Warn], Volume]
    write: Write = write_nifti


def nifti_source(path: Path) -> Source:
    """A NIfTI file; voxels that are not finite are replaced, with a warning in the record."""
    name = case_name(path)
    return Source(ascii(name) if name_problem(name) else name, path, partial(_read, path, name))


def _read(path: Path, name: str, warn: Warn) -> Volume:
    if problem := name_problem(name):
        raise CaseError(f"{str(path)!a}: its name {problem}: rename the file")
    volume = read_image(path, warn=warn)
    for problem in geometry_warnings(volume.source):
        warn(f"{path}: {problem}")
    return volume


def predict_cases(
    predictor: Predictor,
    sources: Sequence[Source],
    output_dir: Path,
    *,
    after_case: AfterCase | None = None,
) -> list[CaseRecord]:
    """Predict every case into `output_dir`; one that fails is recorded and the others go on.

    Args:
        predictor: holds the models.
        sources: the cases; each mask is named after its case.
        output_dir: a folder that `open_output` has made ready.
        after_case: called with name, volume and prediction of every case whose mask is written.
    """
    records: list[CaseRecord] = []

    def finish(job: _Job) -> None:
        job.finish(predictor, output_dir, after_case)
        records.append(job.record())
        try:
            append(output_dir, records[-1])
        except CaseError as error:  # the case is done; only a run that is killed does it again
            log.warning("%s", error)

    with ThreadPoolExecutor(1) as writer, progress("predict", len(sources)) as advance:
        last: Future[None] | None = None
        jobs = (_Job(source, keeps_voxels=after_case is not None) for source in sources)
        for job in _read_ahead(predictor, jobs):
            if job.lacks_memory and last is not None:  # another case had it
                last.result()
                job = _Job(job.source, keeps_voxels=job.keeps_voxels)
                job.prepare(predictor)
            job.infer(predictor)
            if last is not None:
                last.result()
                advance()
            last = writer.submit(finish, job)
        if last is not None:
            last.result()
            advance()
    return records


def _read_ahead(predictor: Predictor, jobs: Iterable[_Job]) -> Iterator[_Job]:
    """Jobs that are read and prepared, one ahead of the caller."""
    with ThreadPoolExecutor(1) as reader:
        ahead: tuple[_Job, Future[None]] | None = None
        for job in chain(jobs, [None]):
            following = None
            if job is not None:
                following = job, reader.submit(job.prepare, predictor)
            if ahead is not None:
                ahead[1].result()
                yield ahead[0]
            ahead = following


class _Job:
    """One case on its way; the first stage that fails ends it, and its arrays go when done.

    Unless they are kept for who looks at them at the end, the scanner's voxels go as soon as the
    network has its own: else a large case would be there three times, read, computed and written.
    """

    def __init__(self, source: Source, *, keeps_voxels: bool) -> None:
        self.source = source
        self.keeps_voxels = keeps_voxels
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.error: str | None = None
        self.lacks_memory = False
        self.volume: Volume | None = None
        self.images: list[FloatArray] = []
        self.inferred: Inferred | None = None
        self.prediction: CasePrediction | None = None

    def prepare(self, predictor: Predictor) -> None:
        self.volume = self._stage("read", self._read)
        self.images = self._stage("prepare", lambda: predictor.prepare(_given(self.volume))) or []
        if self.volume is not None and not self.keeps_voxels:
            self.volume = replace(self.volume, array=np.empty((0, 0, 0)))

    def _read(self) -> Volume:
        volume = self.source.read(self._warn)
        for doubt in intensity_doubts(volume.array):
            self._warn(f"{self.source.path}: {doubt}")
        return volume

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        log.warning("%s", message)

    def infer(self, predictor: Predictor) -> None:
        volume = self.volume
        self.inferred = self._stage("network", lambda: predictor.infer(_given(volume), self.images))
        self.images = []

    def finish(self, predictor: Predictor, output_dir: Path, after_case: AfterCase | None) -> None:
        inferred = self.inferred
        self.prediction = self._stage("finish", lambda: predictor.finish(_given(inferred)))
        self._stage("write", lambda: self._write(output_dir, after_case))
        if self.error is not None:  # its mask may be written, its preview not
            discard(output_dir, self.source.name)
        self.volume = self.inferred = None

    def _write(self, output_dir: Path, after_case: AfterCase | None) -> None:
        volume, prediction = _given(self.volume), _given(self.prediction)
        name = self.source.name
        self.source.write(output_dir, name, volume, prediction)
        for folder, array in prediction.maps.items():
            (output_dir / folder).mkdir(exist_ok=True)
            write_volume(output_dir / folder / f"{name}.nii.gz", array, volume.source)
        if after_case is not None:
            after_case(name, volume, prediction)

    def _stage(self, name: str, action: Callable[[], T]) -> T | None:
        if self.error is not None:
            return None
        start_s = time.perf_counter()
        try:
            return action()
        except CaseError as error:
            what, where = str(error), str(self.source.path)
            self.error = what if where in what or ascii(where) in what else f"{where}: {what}"
            self.lacks_memory = isinstance(error, LackOfMemoryError)
        except Exception as error:
            self.lacks_memory = _is_lack_of_memory(error)
            if self.lacks_memory:
                remedy = "free memory, or crop the image around the pancreas"
                self.error = f"{self.source.path}: memory ran out during {name}: {remedy}"
            else:
                log.exception("%s: defect during %s", self.source.name, name)
                self.error = f"{self.source.path}: defect during {name}: {error!r}; see the log"
        finally:
            self.seconds[name] = round(time.perf_counter() - start_s, 4)
        return None

    def record(self) -> CaseRecord:
        prediction = self.prediction
        probabilities = prediction.subtype_probabilities if prediction else None
        return CaseRecord(
            name=self.source.name,
            input=str(self.source.path),
            subtype_probabilities=None
            if probabilities is None
            else tuple(float(p) for p in probabilities),
            conformal_set=prediction.conformal_set if prediction else None,
            mask_entropy=prediction.mask_entropy if prediction else None,
            seconds=self.seconds,
            warnings=tuple(self.warnings),
            error=self.error,
        )


def _given(value: T | None) -> T:
    """A stage's input, there because the stages before it succeeded."""
    assert value is not None
    return value


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether Python or torch could not allocate what it needed, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
