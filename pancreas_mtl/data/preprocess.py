"""Cases at the plan's spacing, normalised, in a memory-mapped cache that runs share.

An entry is two files named by the content of the inputs and of the plan: `<key>.npy`, float16
`(2, D, H, W)` with the normalised image and its mask (labels are exact in float16), and
`<key>.json` with the facts and a checksum of both. They are written to temporary names and renamed,
the JSON last; so an entry is there whole or not at all, whoever writes it and whenever they are
killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pancreas_mtl.data.files import atomic_path, make_folder, write_text
from pancreas_mtl.data.images import read_image, read_mask
from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.data.resample import resample, resample_labels, spline_orders, target_shape
from pancreas_mtl.errors import CaseError
from pancreas_mtl.types import (
    UNKNOWN,
    Case,
    FloatArray,
    Intensity,
    Label,
    Plan,
    Triple,
    TripleMm,
    Volume,
)

log = logging.getLogger(__name__)

FORMAT = 2
COORDINATES_PER_LABEL = 500
IMAGE_ORDER = 3
MAX_VOX = 2**30  # of one image at the plan's spacing
LISTED = 3  # cases that the message names; the log names all


@dataclass(frozen=True)
class CacheEntry:
    """A preprocessed case. Coordinates are `(d, h, w)` voxels of the cached array."""

    name: str
    path: Path  # the .npy file
    shape: Triple
    subtype: int | None
    has_mask: bool
    lesion_vox: int
    pancreas_at: npt.NDArray[np.int32]  # (n, 3), a sample of at most COORDINATES_PER_LABEL
    lesion_at: npt.NDArray[np.int32]  # (n, 3)

    def open(self) -> npt.NDArray[np.float16]:
        """The memory-mapped `(2, D, H, W)` array: image, mask (UNKNOWN where there is none)."""
        return np.load(self.path, mmap_mode="r")


def normalise(hu: FloatArray, intensity: Intensity) -> FloatArray:
    """Clip HU to the foreground's percentiles and standardise, as nnU-Net does for CT."""
    clipped = np.clip(hu, intensity.low_hu, intensity.high_hu)
    clipped -= intensity.mean_hu
    clipped /= intensity.std_hu
    return clipped


def prepare_image(volume: Volume, intensity: Intensity, spacing_mm: TripleMm) -> FloatArray:
    """Normalise and resample one image to `(D, H, W)` at the plan's spacing."""
    shape = _shape3(volume.array)
    orders = spline_orders(volume.spacing_mm, spacing_mm, order=IMAGE_ORDER)
    new_shape = target_shape(shape, volume.spacing_mm, spacing_mm)
    if math.prod(new_shape) > MAX_VOX:
        raise CaseError(
            f"{shape} voxels of {volume.spacing_mm} mm become {new_shape} at the plan's spacing: "
            "too many; check the header's spacing, or crop the image around the pancreas"
        )
    return resample(normalise(volume.array, intensity), new_shape, orders=orders)


def preprocess(
    cases: Sequence[Case], plan: Plan, cache_dir: Path, *, workers: int
) -> list[CacheEntry]:
    """Bring every case into the cache and return the entries in the order of `cases`.

    Entries that are there and whole are kept, so an interrupted run goes on where it stopped.

    Raises:
        CaseError: cases cannot be used; the others have been written.
        UsageError: the cache folder cannot be written.
    """
    make_folder(cache_dir, "paths.cache")
    one = partial(preprocess_case, plan=plan, cache_dir=cache_dir)
    look = partial(_find_entry, plan=plan, cache_dir=cache_dir)
    found = map_in_processes(look, cases, workers=1, label="look into the cache")
    done = {case.name: entry for case, entry in found if isinstance(entry, CacheEntry)}
    missing = [case for case in cases if case.name not in done]
    failures: list[str] = []
    for case, result in map_in_processes(one, missing, workers=workers, label="preprocess"):
        if isinstance(result, Exception):
            failures.append(f"{case.name}: {result}")
            log.error("preprocess: %s", failures[-1])
        else:
            done[case.name] = result
    if failures:
        more = f"; {len(failures) - LISTED} more are in the log" if failures[LISTED:] else ""
        raise CaseError(
            f"{len(failures)} of {len(cases)} cases cannot be used: "
            f"{'; '.join(failures[:LISTED])}{more}. Mend them, or leave them out"
        )
    return [done[case.name] for case in cases]


def preprocess_case(case: Case, *, plan: Plan, cache_dir: Path) -> CacheEntry:
    """Return the case's entry, making it unless it is there and its checksum holds."""
    key = cache_key(case, plan)
    found = _load_entry(case, cache_dir / key)
    if found is not None:
        return found
    volume = read_image(case.image)
    image = prepare_image(volume, plan.intensity, plan.spacing_mm)
    mask = np.full(image.shape, UNKNOWN, dtype=np.int8)
    if case.mask is not None:
        reference = read_mask(case.mask, grid=volume.source)
        orders = spline_orders(volume.spacing_mm, plan.spacing_mm, order=1)
        mask = resample_labels(reference.array, _shape3(image), orders=orders).astype(np.int8)
    _write_entry(case, np.stack([image, mask]).astype(np.float16), cache_dir / key)
    entry = _load_entry(case, cache_dir / key)
    if entry is None:
        raise CaseError(f"{cache_dir / key}.npy: differs from what was written; check the disk")
    return entry


def _find_entry(case: Case, plan: Plan, cache_dir: Path) -> CacheEntry | None:
    try:
        return _load_entry(case, cache_dir / cache_key(case, plan))
    except CaseError:
        return None  # preprocessing says why


def cache_key(case: Case, plan: Plan) -> str:
    """A name from the content of the case's files and of what the plan says of preprocessing."""
    digest = hashlib.blake2b(digest_size=16)
    facts = {"format": FORMAT, "spacing": plan.spacing_mm, "intensity": asdict(plan.intensity)}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for path in (case.image, case.mask):
        if path is None:
            continue
        try:
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise CaseError(f"{path}: {error.strerror}; check the file") from error
    return digest.hexdigest()


def _write_entry(case: Case, array: npt.NDArray[np.float16], stem: Path) -> None:
    mask = array[1]
    facts = {
        "format": FORMAT,
        "name": case.name,
        "shape": list(mask.shape),
        "has_mask": case.mask is not None,
        "lesion_vox": int((mask == Label.LESION).sum()),
        "pancreas_at": _sample_coordinates(mask == Label.PANCREAS),
        "lesion_at": _sample_coordinates(mask == Label.LESION),
    }
    with atomic_path(Path(f"{stem}.npy")) as temporary, temporary.open("wb") as file:
        np.save(file, array)
    write_text(Path(f"{stem}.json"), json.dumps(facts | {"checksum": _checksum(array, facts)}))


def _load_entry(case: Case, stem: Path) -> CacheEntry | None:
    """The entry if both files are there and match their checksum, else None."""
    path = Path(f"{stem}.npy")
    try:
        facts: dict[str, Any] = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        array = np.load(path, mmap_mode="r")
        if facts.pop("checksum") != _checksum(array, facts) or facts["format"] != FORMAT:
            return None
    except (OSError, ValueError, EOFError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return CacheEntry(
        name=case.name,
        path=path,
        shape=_shape3(array[1]),
        subtype=case.subtype,
        has_mask=facts["has_mask"],
        lesion_vox=facts["lesion_vox"],
        pancreas_at=np.asarray(facts["pancreas_at"], dtype=np.int32).reshape(-1, 3),
        lesion_at=np.asarray(facts["lesion_at"], dtype=np.int32).reshape(-1, 3),
    )


def _sample_coordinates(where: npt.NDArray[np.bool_]) -> list[list[int]]:
    found = np.argwhere(where)
    if len(found) > COORDINATES_PER_LABEL:
        rng = np.random.default_rng(0)
        found = found[rng.choice(len(found), COORDINATES_PER_LABEL, replace=False)]
    return [[int(d), int(h), int(w)] for d, h, w in found]


def _checksum(array: npt.NDArray[Any], facts: dict[str, Any]) -> str:
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _shape3(array: npt.NDArray[Any]) -> Triple:
    d, h, w = array.shape
    return d, h, w
