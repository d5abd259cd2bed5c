"""What is wrong with a dataset, before anything is trained on it.

Errors make a case, or the scores, worthless, and stop training; warnings deserve a look. Each case
is read once, in a process of its own (`checks.py`); then the cases are compared with one another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from pancreas_mtl.data.checks import CHECKS, CaseFacts, Finding, check_case
from pancreas_mtl.data.images import read_grid
from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.errors import CaseError, LackOfMemoryError
from pancreas_mtl.types import Case, Split

SCHEMA = 1
_BYTES_PER_VOXEL = 16  # image, mask and what their comparison needs
LISTED = 5  # cases named under each check in the text
_PARTS: tuple[Split, ...] = (
    "test",
    "validation",
    "train",
)  # of two duplicates, the one in the first part stays


@dataclass(frozen=True)
class AuditReport:
    """All findings, worst check first, then by case."""

    cases: tuple[Case, ...]
    findings: tuple[Finding, ...]
    facts: tuple[CaseFacts, ...] = field(repr=False)

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop training."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def summary(self) -> str:
        """Counts of cases, errors and warnings, in one line."""
        parts = Counter(case.split for case in self.cases)
        counts = ", ".join(f"{parts[split]} {split}" for split in reversed(_PARTS))
        errors = len(self.errors)
        where = f" in {len({finding.case for finding in self.errors})} cases" if errors else ""
        warnings = len(self.findings) - errors
        return f"{len(self.cases)} cases ({counts}): {errors} errors{where}, {warnings} warnings"

    def text(self) -> str:
        """All checks that found something, each with its first cases and what to do."""
        lines = [self.summary()]
        for code, group in groupby(self.findings, key=lambda finding: finding.code):
            found = list(group)
            severity, remedy = CHECKS[code]
            lines.append(f"{severity.upper()} {code} ({len(found)}): {remedy}")
            lines += [f"  {finding.case}: {finding.message}" for finding in found[:LISTED]]
            if len(found) > LISTED:
                lines.append(f"  and {len(found) - LISTED} more in audit.json")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The content of `audit.json`."""
        return {
            "schema": SCHEMA,
            "n_cases": len(self.cases),
            "n_errors": len(self.errors),
            "n_warnings": len(self.findings) - len(self.errors),
            "findings": [
                {"severity": finding.severity, **asdict(finding), "remedy": finding.remedy}
                for finding in self.findings
            ],
            "cases": [asdict(facts) for facts in self.facts],
        }


def audit_cases(cases: Sequence[Case], *, workers: int) -> AuditReport:
    """Read every case, and check it alone and against the others."""
    findings: list[Finding] = []
    measured: list[CaseFacts] = []
    for case, result in map_in_processes(check_case, cases, workers=workers, label="audit"):
        if isinstance(result, CaseError) and not isinstance(result, LackOfMemoryError):
            findings.append(Finding("unreadable_image", case.name, str(result)))
        elif isinstance(result, Exception):
            raise result
        else:
            facts, found = result
            findings += found
            measured += [facts] if facts else []
    measured.sort(key=lambda facts: facts.name)
    flawed = {finding.case for finding in findings if finding.severity == "error"}
    findings += _duplicates(cases, measured, flawed)
    findings += _unusual_orientations(measured)
    order = list(CHECKS)
    findings.sort(key=lambda finding: (order.index(finding.code), finding.case, finding.message))
    return AuditReport(tuple(cases), tuple(findings), tuple(measured))


def largest_case_bytes(cases: Iterable[Case]) -> int:
    """Memory that auditing the largest case takes, from the headers alone."""
    sizes = [0]
    for case in cases:
        try:
            sizes.append(int(np.prod(read_grid(case.image).shape)))
        except CaseError:
            continue  # auditing reports it
    return _BYTES_PER_VOXEL * max(sizes)


def _duplicates(
    cases: Sequence[Case], measured: list[CaseFacts], flawed: set[str]
) -> Iterator[Finding]:
    """Images with the same voxels; the copy nearest to training should go, or one with an error."""
    split_of = {case.name: case.split for case in cases}
    copies: dict[str, list[str]] = defaultdict(list)
    for facts in measured:
        copies[facts.digest].append(facts.name)

    def worth(name: str) -> tuple[int, bool, str]:
        return _PARTS.index(split_of[name]), name in flawed, name

    for names in copies.values():
        kept, *others = sorted(names, key=worth)
        for name in others:
            code = "duplicate_in_test" if split_of[name] == "test" else "duplicate"
            message = f"in {split_of[name]}, has the voxels of {kept}, in {split_of[kept]}"
            yield Finding(code, name, message)


def _unusual_orientations(measured: list[CaseFacts]) -> Iterator[Finding]:
    """Files whose axes run otherwise than those of nine in ten."""
    counts = Counter(facts.orientation for facts in measured)
    for usual, count in counts.most_common(1):
        if count >= 0.9 * len(measured):
            for facts in measured:
                if facts.orientation != usual:
                    message = f"stored as {facts.orientation}, nearly all others as {usual}"
                    yield Finding("odd_orientation", facts.name, message)
