"""Which patches training reads, decided apart from reading them.

A sampler draws `PatchRequest`s as a pure function of seed, epoch and rank; the loader's workers
only read and crop what a request says. So a run that resumes, or that uses more workers, sees the
same patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from pancreas_mtl.data.preprocess import CacheEntry
from pancreas_mtl.types import NUM_SUBTYPES, UNKNOWN, Batch, Label, Triple


class PatchRequest(NamedTuple):
    """One patch: the index of its case, what its centre should lie in, and its own seed."""

    case: int
    focus: Label  # BACKGROUND stands for anywhere
    seed: int


class PatchSampler(Sampler[list[PatchRequest]]):
    """Draws the batches of one epoch; give it to a DataLoader as `batch_sampler`.

    Args:
        entries: the training cases.
        batch_size: patches per step and rank.
        steps: batches per epoch and rank.
        seed: of the run.
        lesion_share: share of patches centred in the lesion; as many, or what is left, are centred
            in the pancreas.
        balanced: draw the subtypes equally often; cases of unknown subtype keep their share.
        rank: of this process; each rank draws its own part of the same sequence.
        world_size: number of processes.
    """

    def __init__(
        self,
        entries: Sequence[CacheEntry],
        *,
        batch_size: int,
        steps: int,
        seed: int,
        lesion_share: float = 1 / 3,
        balanced: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.subtypes = [UNKNOWN if e.subtype is None else e.subtype for e in entries]
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.lesion_share = lesion_share
        self.balanced = balanced
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        """Batches per epoch and rank."""
        return self.steps

    def __iter__(self) -> Iterator[list[PatchRequest]]:
        """The batches of `self.epoch` from `self.first_batch` on; call `set_epoch` before."""
        rng = np.random.default_rng([self.seed, self.epoch])
        total = self.steps * self.batch_size * self.world_size
        cases = self._draw_cases(total, rng)
        draw = rng.random(total)
        seeds = rng.integers(0, 2**62, size=total)
        requests = [
            PatchRequest(int(case), self._focus(u), int(seed))
            for case, u, seed in zip(cases, draw, seeds, strict=True)
        ]
        mine = requests[self.rank :: self.world_size]
        for start in range(self.first_batch * self.batch_size, len(mine), self.batch_size):
            yield mine[start : start + self.batch_size]

    def set_epoch(self, epoch: int, *, first_batch: int = 0) -> None:
        """Choose the epoch that the next iteration draws, and where in it a resumed run begins."""
        self.epoch = epoch
        self.first_batch = first_batch

    def _focus(self, u: float) -> Label:
        if u < self.lesion_share:
            return Label.LESION
        return Label.PANCREAS if u < 2 * self.lesion_share else Label.BACKGROUND

    def _draw_cases(self, total: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Case indices without replacement, permutation after permutation.

        The first permutation goes on where the epoch before ended, so over many epochs every case
        is drawn equally often even where an epoch is shorter than the dataset.
        """
        n = len(self.subtypes)
        if self.balanced:
            return rng.choice(n, size=total, p=balanced_weights(self.subtypes))
        first = self.epoch * total
        pools = range(first // n, (first + total - 1) // n + 1)
        order = [np.random.default_rng([self.seed, 1, pool]).permutation(n) for pool in pools]
        start = first % n
        return np.concatenate(order)[start : start + total]


def balanced_weights(subtypes: Sequence[int]) -> npt.NDArray[np.float64]:
    """Probability per case such that the known subtypes present are drawn equally often, (N,)."""
    labels = np.asarray(subtypes)
    weights = np.ones(len(labels))
    known = labels != UNKNOWN
    present = [s for s in range(NUM_SUBTYPES) if (labels == s).any()]
    for subtype in present:
        members = labels == subtype
        weights[members] = known.sum() / (len(present) * members.sum())
    return weights / weights.sum()


class PatchDataset(Dataset[Batch]):
    """Reads and crops single patches, as Batches of one; RAM does not grow with the cases.

    Args:
        entries: of the cases.
        patch_size: of what training sees.
        read_size: of what is read, larger by an even number along each axis; the patch is its
            middle, and what lies around it may lie outside the image.
    """

    def __init__(
        self, entries: Sequence[CacheEntry], *, patch_size: Triple, read_size: Triple | None = None
    ) -> None:
        self.entries = list(entries)
        self.patch_size = patch_size
        self.read_size = read_size or patch_size

    def __getitem__(self, request: PatchRequest) -> Batch:
        """Read one patch of `read_size`; outside the image it is 0, the mean, and background."""
        entry = self.entries[request.case]
        start = patch_start(entry, request, self.patch_size)
        sizes = zip(start, self.read_size, self.patch_size, strict=True)
        d, h, w = (first - (read - patch) // 2 for first, read, patch in sizes)
        return _as_batch(entry, crop(entry.open(), (d, h, w), self.read_size), request.seed)


class CaseDataset(Dataset[Batch]):
    """Reads whole cases at the plan's spacing, for validation."""

    def __init__(self, entries: Sequence[CacheEntry]) -> None:
        self.entries = list(entries)

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Batch:
        """Read one whole case."""
        entry = self.entries[index]
        return _as_batch(entry, np.array(entry.open()), seed=0)


def patch_start(entry: CacheEntry, request: PatchRequest, size: Triple) -> Triple:
    """The first voxel of a patch; negative where the image is smaller than the patch.

    The patch lies as far inside the image as it can; an image smaller than the patch is centred
    along that axis. A focus that the case does not have falls back to the pancreas, then anywhere.
    """
    rng = np.random.default_rng(request.seed)
    centre = _draw_centre(entry, request.focus, rng)
    start = []
    for axis in range(3):
        room = entry.shape[axis] - size[axis]
        if room <= 0:
            start.append(-(-room // 2))  # the smaller half before, as prediction pads
        elif centre is None:
            start.append(int(rng.integers(0, room + 1)))
        else:
            start.append(int(np.clip(centre[axis] - size[axis] // 2, 0, room)))
    return start[0], start[1], start[2]


def _draw_centre(
    entry: CacheEntry, focus: Label, rng: np.random.Generator
) -> npt.NDArray[np.int32] | None:
    candidates = {
        Label.LESION: [entry.lesion_at, entry.pancreas_at],
        Label.PANCREAS: [entry.pancreas_at, entry.lesion_at],
    }.get(focus, [])
    for coordinates in candidates:
        if len(coordinates):
            centre: npt.NDArray[np.int32] = coordinates[rng.integers(len(coordinates))]
            return centre
    return None


def crop(array: npt.NDArray[np.float16], start: Triple, size: Triple) -> npt.NDArray[np.float16]:
    """Cut `(2, *size)` out of `(2, D, H, W)`, padded with zeros outside (UNKNOWN stays UNKNOWN)."""
    there = [
        slice(max(0, s), min(n, s + k))
        for n, s, k in zip(array.shape[1:], start, size, strict=True)
    ]
    inside = array[(slice(None), *there)]
    if inside.shape[1:] == size:
        return np.array(inside)
    found = np.zeros((2, *size), array.dtype)
    if inside.size and inside[1, 0, 0, 0] == UNKNOWN:
        found[1] = UNKNOWN
    here = [slice(a.start - s, a.stop - s) for a, s in zip(there, start, strict=True)]
    if inside.size:
        found[(slice(None), *here)] = inside
    return found


def _as_batch(entry: CacheEntry, array: npt.NDArray[np.float16], seed: int) -> Batch:
    both = torch.from_numpy(array)  # whose conversions are vectorised, unlike numpy's
    return Batch(
        image=both[:1].float(),
        mask=both[1:].to(torch.int16),
        subtype=torch.tensor(UNKNOWN if entry.subtype is None else entry.subtype),
        lesion_vox=torch.tensor(float(entry.lesion_vox)),
        seed=torch.tensor(seed),
        name=entry.name,  # type: ignore[arg-type]  # the collate function makes the list
    )
