"""Files written all at once or not at all, and what to do where that fails."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pancreas_mtl.errors import CaseError, UsageError

MAX_TEXT_BYTES = 2**18
MAX_VALUE_CHARS = 100  # of a number or date in YAML
UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What reading text of unknown origin may raise, from the disk to the meaning."""

_REMEDIES = {
    errno.EACCES: "give a folder that may be written to",
    errno.EPERM: "give a folder that may be written to",
    errno.EROFS: "give a folder that may be written to",
    errno.ENAMETOOLONG: "shorten the name",
}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place at the end, unless an error came.

    Raises:
        CaseError: the disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise not_written(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty draft that takes the place of `folder` at the end, unless an error came.

    Raises:
        CaseError: the disk is full, or the folder cannot be written to.
    """
    home = next(one for one in folder.absolute().parents if one.exists())
    name = "-".join(folder.absolute().relative_to(home).parts)  # another's `bundle` is not ours
    draft = home / f".{name}.{uuid.uuid4().hex[:8]}"
    old = draft.with_suffix(".old")
    try:
        draft_name = re.compile(rf"\.{re.escape(name)}\.([0-9a-f]{{8}}|old)")
        for leftover in home.iterdir():
            if draft_name.fullmatch(leftover.name):
                shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
        draft.mkdir()
        yield draft
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
    except OSError as error:
        raise not_written(folder, error) from None
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for path in (draft, old):
            shutil.rmtree(path, ignore_errors=True)


def is_leftover(path: Path) -> bool:
    """Whether a file is the temporary one of a process that was killed while it wrote."""
    return path.name.startswith(".") and path.suffix == ".tmp"


def _to_disk(path: Path) -> None:
    """Wait until a file is on the disk, so that a power failure leaves the old one or the new."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def not_written(path: Path, error: OSError) -> CaseError:
    """The one line about a file that could not be written."""
    remedy = _REMEDIES.get(error.errno or 0, "free space there, or write elsewhere")
    return CaseError(f"{path} cannot be written ({reason(error)}): {remedy}")


def read_text(path: Path) -> str:
    """Read a small text file, such as a plan or a configuration.

    Raises:
        OSError, ValueError: it cannot be read, is no UTF-8, or has more than MAX_TEXT_BYTES.
    """
    with path.open("rb") as file:
        data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"more than {MAX_TEXT_BYTES} bytes")
    return data.decode("utf-8-sig")


class _PlainLoader(yaml.SafeLoader):
    """YAML as a tree of plain values: no tags, no aliases (they unfold without bound)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if not node.tag.endswith(":str") and len(node.value) > MAX_VALUE_CHARS:
            raise yaml.YAMLError(f"a value has {len(node.value)} digits")
        return super().construct_scalar(node)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the configuration of a bundle or run, which may come from a stranger.

    Raises:
        UsageError: it is missing, or is no mapping of plain values of bounded size.
    """
    try:
        config = yaml.load(read_text(path), _PlainLoader)
    except FileNotFoundError:
        raise UsageError(f"{path}: not found; give the whole folder of a run or bundle") from None
    except (*UNREADABLE, yaml.YAMLError) as error:
        raise UsageError(
            f"{path}: not readable as plain YAML ({reason(error)}); restore it from the run"
        ) from None
    if not isinstance(config, dict):
        raise UsageError(f"{path}: not a configuration; restore it from the run")
    return config


def reason(error: Exception) -> str:
    """What an error of a library says, in one line of bounded length."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:120]


def write_text(path: Path, text: str) -> None:
    """Write a text file; raises what `atomic_path` raises."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; raises what `atomic_path` raises."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """The header of a table, and its rows by header, each with its line number.

    Raises:
        UsageError: it cannot be read, or is no table in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or [])
            return header, [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read ({reason(error)}): save it as CSV") from None


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table; raises what `atomic_path` raises."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def make_folder(path: Path, key: str = "output_dir") -> Path:
    """Make the folder that a key of the configuration names; a UsageError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{key}={path}: {error.strerror}; give another one") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{key}={path}: may not be written to; give another one")
    return path


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep an output folder for this process alone, as long as it runs.

    Raises:
        UsageError: another process has it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise UsageError(
            f"output_dir={folder}: another process writes there; wait for it, or give another one"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time into the block, of all that share the folder; the others wait."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_replaceable(folder: Path, *, marker: str, what: str, overwrite: bool) -> None:
    """Refuse an output folder, unless it is free or holds what may be replaced.

    Args:
        folder: to be.
        marker: a file by which what may be replaced is known.
        what: it is called.
        overwrite: whether it is to be replaced.

    Raises:
        UsageError: it is a file, holds something else, or what is not to be replaced.
    """
    if folder.is_file():
        raise UsageError(f"output_dir={folder} is a file: give another output_dir")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / marker).exists():
        raise UsageError(f"output_dir={folder} is not empty: give another output_dir")
    if not overwrite:
        raise UsageError(
            f"output_dir={folder} holds {what}: give another output_dir, or overwrite=true"
        )


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder which is now ours."""
    for path in filter(is_leftover, folder.iterdir()):
        path.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Put `source` at `target` too: a hard link, or a copy where the file system has none.

    Raises:
        CaseError: the disk is full, or the folder cannot be written to.
    """
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
