"""What `conf/` offers to a command: its keys, its groups of choices, and what their files say.

A file's first sentence describes the choice; the comment behind a key describes the key. So help
texts and suggestions have no home but the files themselves.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.syntax import Syntax

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
# Sections whose keys are arguments of a library, or names that a user gives.
OPEN = ("trainer", "logger.wandb", "sweep.space", "configurations", "ensembles", "folds", "parts")
LAUNCHER = "hydra/launcher"  # what runs the jobs of a multirun
NOT_KEYS = ("defaults", "hydra", "_target_")
LINE = re.compile(r"(?P<indent> *)(?P<key>[\w./]+):(?: +(?P<value>[^#]*?))?(?: +# *(?P<note>.*))?$")


class Key(NamedTuple):
    """A key with its default and its comment, as a file has them."""

    name: str
    default: str
    note: str


class ConfFile(NamedTuple):
    """One file: its first sentence, and its keys by their full names; a diff defines none."""

    summary: str
    keys: list[Key]


class Group(NamedTuple):
    """A folder of files of which one is chosen."""

    name: str
    default: str | None
    choices: dict[str, ConfFile]


def groups(command: str) -> list[Group]:
    """The groups in the defaults of `<command>.yaml`, in their order; at the end the launchers.

    A command that starts from another's file has its groups, but not its launchers.
    """
    found: list[Group] = []
    launchers: list[Group] = []
    for entry in _defaults(command):
        if isinstance(entry, str):
            found += [] if entry == "_self_" else [g for g in groups(entry) if g.name != LAUNCHER]
            continue
        ((name, default),) = entry.items()
        if name == f"override {LAUNCHER}":
            launchers.append(_group(LAUNCHER, default))
        elif not name.startswith("override "):
            found.append(_group(name.split()[-1], None if default == "???" else default))
    return found + launchers


def own_keys(command: str) -> list[Key]:
    """The keys of `<command>.yaml` itself, and of a command's file that it starts from."""
    bases = [entry for entry in _defaults(command) if isinstance(entry, str) and entry != "_self_"]
    keys = {key.name: key for base in bases for key in own_keys(base)}
    own = read_file(CONF_DIR / f"{command}.yaml", "").keys
    return list((keys | {key.name: key for key in own}).values())


def _defaults(command: str) -> list[Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / f"{command}.yaml"))
    return list(content.get("defaults", []))


def known_keys(command: str) -> set[str]:
    """Every dotted key that a file of the command's defines, every section and every group."""
    found = groups(command)
    files = [choice.keys for group in found for choice in group.choices.values()]
    names = {key.name for keys in (own_keys(command), *files) for key in keys}
    return names | {parent for name in names for parent in _parents(name)} | {g.name for g in found}


def unknown_key(config: DictConfig, command: str, added: Sequence[str] = ()) -> str | None:
    """The first key of a composed configuration that no file defines, such as a misspelled one.

    Keys in `added`, which the user has added on purpose, count as known.
    """
    free = {*OPEN, *added}
    known = known_keys(command) | free | {parent for name in added for parent in _parents(name)}
    for name in flat_keys(config):
        if name not in known and not free.intersection(_parents(name)):
            return name
    return None


def _parents(name: str) -> list[str]:
    """The sections around a key: `a` and `a.b` of `a.b.c`."""
    return [name[: dot.start()] for dot in re.finditer(r"\.", name)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` with the most similar known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def flat_keys(node: Any, prefix: str = "") -> list[str]:
    """The dotted names of all keys of a configuration, unresolved."""
    names = []
    for key in node if isinstance(node, DictConfig) and not node._is_none() else ():
        names += [f"{prefix}{key!s}", *flat_keys(node._get_node(key), f"{prefix}{key!s}.")]
    return names


def plain(config: Any) -> Any:
    """The resolved configuration as dicts, lists and scalars."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> dict[str, list[Any]]:
    """The dotted keys of both whose values differ: what they were, and what they are."""
    found: dict[str, list[Any]] = {}
    for key in [key for key in before if key in after]:
        old, new = before[key], after[key]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found[f"{prefix}{key}"] = [old, new]
    return found


def print_config(config: DictConfig) -> None:
    """Print the resolved configuration as YAML, in colour on a terminal."""
    text = OmegaConf.to_yaml(config, resolve=True)
    console = Console()
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default"))
    else:
        print(text, end="")


def read_file(path: Path, package: str) -> ConfFile:
    """Read a file whose keys belong to `package`, unless its header names another."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and (header := re.match(r"# @package (\S+)", lines[0])):
        package = header[1]
    is_diff = package == "_global_"
    return ConfFile(_summary(lines), [] if is_diff else _keys(lines, package))


def _group(name: str, default: str | None) -> Group:
    files = sorted((CONF_DIR / name).glob("*.yaml"))
    package = name.replace("/", ".")
    return Group(name, default, {path.stem: read_file(path, package) for path in files})


def _keys(lines: list[str], package: str) -> list[Key]:
    keys: list[Key] = []
    parents: list[tuple[int, str]] = []  # indentation and name of the keys around a line
    for line in lines:
        found = LINE.match(line)
        if found is None:
            continue
        indent = len(found["indent"])
        parents = [parent for parent in parents if parent[0] < indent] + [(indent, found["key"])]
        if parents[0][1] not in NOT_KEYS:
            name = ".".join([package, *(key for _, key in parents)]).lstrip(".")
            keys.append(Key(name, (found["value"] or "").strip(), found["note"] or ""))
    return keys


def _summary(lines: list[str]) -> str:
    """The first sentence of the comment at the top, up to a semicolon; "" without one."""
    words: list[str] = []
    for line in lines:
        if line.startswith("# @package"):
            continue
        if not line.startswith("# "):
            break
        words += line[2:].split()
        if words[-1].endswith("."):
            break
    return re.split(r"; |(?<=[.?]) (?=[A-Z0-9])", " ".join(words))[0]


def choices_in(arguments: Iterable[str], command: str) -> Mapping[str, str]:
    """The choices of groups among command-line arguments, such as `data=quiz`."""
    names = {group.name for group in groups(command)}
    pairs = [argument.split("=", 1) for argument in arguments if "=" in argument]
    return {name: value for name, value in pairs if name in names}
