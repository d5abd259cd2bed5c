"""Where a run comes from: the revision and changes of the code, the packages, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GIT_TIMEOUT_S = 30.0
CODE = (".py", ".yaml")
ADDED = ("diff", "--binary", "--no-index", "--", os.devnull)


@dataclass(frozen=True)
class CodeState:
    """The code that runs: None and empty where it does not lie in a git repository of its own."""

    revision: str | None  # of the last commit, in full
    diff: str  # against it, of the files that git tracks, and the whole of new code
    untracked: tuple[str, ...]  # files that git neither tracks nor ignores

    @property
    def label(self) -> str:
        """A short name such as `3f2c1ab`, or `3f2c1ab-dirty` where files have changed."""
        if self.revision is None:
            return "unversioned"
        return self.revision[:7] + ("-dirty" if self.diff or self.untracked else "")


def code_state(root: Path = ROOT) -> CodeState:
    """Ask git about the code in `root`."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top.strip()).resolve() != root.resolve():
        return CodeState(None, "", ())
    revision = _git(root, "rev-parse", "HEAD").strip() or None
    listed = _git(root, "ls-files", "-z", "--others", "--exclude-standard")
    untracked = tuple(name for name in listed.split("\0") if name)
    added = [_git(root, *ADDED, name) for name in untracked if Path(name).suffix in CODE]
    return CodeState(revision, _git(root, "diff", "HEAD", "--binary") + "".join(added), untracked)


def package_versions() -> dict[str, str]:
    """Every installed package with its version, sorted by name."""
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def machine() -> dict[str, str]:
    """What the run computes on, as far as the interpreter knows."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
        "cores": str(os.cpu_count()),
    }


def peak_memory_gb() -> dict[str, float] | None:
    """Resident memory at its peak, in GB: of this process, and of the largest it has waited for.

    Unknown on Windows. Pages of mapped files count while they are mapped.
    """
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    parts = {"process": resource.RUSAGE_SELF, "largest_child": resource.RUSAGE_CHILDREN}
    peaks = {name: resource.getrusage(who).ru_maxrss for name, who in parts.items()}
    return {name: round(peak * unit / 1e9, 3) for name, peak in peaks.items()}


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    differs = done.returncode == 1 and arguments[:1] == ("diff",)  # of diff --no-index
    return done.stdout if done.returncode == 0 or differs else ""
