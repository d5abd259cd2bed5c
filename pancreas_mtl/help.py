"""The answer to `--help`: what a command does, its choices and its keys, each with one line."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from pancreas_mtl.configuration import CONF_DIR, Group, Key, choices_in, groups, own_keys

KEY_COLUMN, NAME_COLUMN = 36, 20
FOOTER = """\
KEY=A,B with -m runs every combination; --cfg job --resolve prints what would run; --hydra-help
lists Hydra's own options. Completion by the Tab key: docs/how-to/command-line.md.
Exit codes: 0 all done; 1 some cases failed, or a defect; 2 bad usage, nothing was done;
75 a signal interrupted it, and the same command goes on."""


def help_text(command: str, purpose: str, arguments: Sequence[str]) -> str:
    """The help of a command.

    Args:
        command: the name of its file in `conf/`.
        purpose: what it does.
        arguments: of the command line; the keys shown are those of the choices made there.
    """
    chosen = choices_in(arguments, command)
    found = groups(command)
    lines = [purpose, "", f"  {usage(command)}", ""]
    if any(len(group.choices) > 1 for group in found):
        lines += ["Choices, GROUP=NAME (* default)", *_choices(found), ""]
    lines += ["Keys, KEY=VALUE", *_keys([key for key in own_keys(command) if key.default])]
    for group in found:
        name = chosen.get(group.name, group.default)
        if name in group.choices and group.choices[name].keys:
            lines += ["", f"Keys of {group.name}={name}", *_keys(group.choices[name].keys)]
    return "\n".join([*lines, "", FOOTER])


def usage(command: str) -> str:
    """The command as one types it, from the first line of its file."""
    first = (CONF_DIR / f"{command}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("# ")


def _choices(found: list[Group]) -> Iterator[str]:
    for group in found:
        if len(group.choices) > 1:
            yield f"  {group.name}"
            for name, file in group.choices.items():
                mark = "*" if name == group.default else " "
                yield from _two_columns(f"  {mark} {name}", NAME_COLUMN, file.summary)


def _keys(keys: Sequence[Key]) -> Iterator[str]:
    for key in keys:
        if key.default == "???":
            note = f"required; {key.note}" if key.note else "required"
            yield from _two_columns(f"  {key.name}=", KEY_COLUMN, note)
        elif key.default:
            yield from _two_columns(f"  {key.name}={key.default}", KEY_COLUMN, key.note)


def _two_columns(left: str, column: int, right: str) -> Iterator[str]:
    """`left` and, from `column` on, `right`, which is wrapped at the terminal's width."""
    width = max(shutil.get_terminal_size((100, 0)).columns, 2 * column)
    lines = textwrap.wrap(right, width - column, break_on_hyphens=False)
    if len(left) >= column:
        yield left
        left = ""
    elif not lines:
        yield left
    for line in lines:
        yield f"{left:<{column}}{line}"
        left = ""
