"""Sections of the configuration become frozen dataclasses with the same fields.

So a key that does not exist fails by its name, before any work is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig

from pancreas_mtl.configuration import did_you_mean, plain
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.shards import Shard
from pancreas_mtl.models.network import NetworkConfig
from pancreas_mtl.training.warm_start import WarmStart

Settings = TypeVar("Settings")

SHARED: dict[type, type] = {NetworkConfig: WarmStart, WarmStart: NetworkConfig}
"""Dataclasses that are made from one section together."""


def settings(kind: type[Settings], config: DictConfig, section: str) -> Settings:
    """Make the dataclass `kind` from `config[section]`, lists becoming tuples.

    Raises:
        UsageError: a key is not one of the dataclass's fields, or one is missing.
    """
    values = plain(config[section])
    own = _names(kind)
    known = own | _names(SHARED.get(kind))
    for key in sorted(set(values) - known):
        hint = did_you_mean(f"{section}.{key}", [f"{section}.{name}" for name in known])
        has = ", ".join(sorted(known))
        raise UsageError(f"{section}.{key}: no such key{hint}; {section} has {has}")
    for name, wanted in get_type_hints(kind).items():
        if name not in values and name in _needed(kind):
            raise UsageError(
                f"{section}.{name} is missing: write it into the file of {section}, or give "
                f"+{section}.{name}=VALUE"
            )
        if name in values:
            check_type(f"{section}.{name}", values[name], wanted)
    try:
        return kind(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in own}
        )
    except TypeError as error:
        raise UsageError(f"{section}: {error}") from error


KINDS: Mapping[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("text", (str,)),
    tuple: ("a list", (list, tuple)),
    dict: ("keys with values", (dict,)),
    Mapping: ("keys with values", (dict,)),
    NoneType: ("null", (NoneType,)),
}


def check_type(key: str, value: Any, wanted: Any) -> None:
    """Raise a `UsageError` where a plain value, or a part of it, is of none of the wanted types."""
    if get_origin(wanted) is Literal and value not in get_args(wanted):
        raise UsageError(f"{key}={value}: choose one of {', '.join(map(str, get_args(wanted)))}")
    options = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    known = [KINDS.get(get_origin(option) or option) for option in options]
    accepted = [one for one in known if one is not None]
    if len(accepted) < len(known):
        return  # something richer, which its own code checks
    for option, (_, types) in zip(options, accepted, strict=True):
        if isinstance(value, types) and (not isinstance(value, bool) or bool in types):
            _check_parts(key, value, get_args(option))
            return
    raise UsageError(f"{key}={value}: has to be {' or '.join(name for name, _ in accepted)}")


def _check_parts(key: str, value: Any, wanted: tuple[Any, ...]) -> None:
    """The same for what is in a list or under keys, where the type says of what kind it is."""
    if isinstance(value, dict) and wanted:
        for name, part in value.items():
            check_type(f"{key}.{name}", part, wanted[-1])
    elif isinstance(value, (list, tuple)) and wanted:
        kinds = wanted[:1] * len(value) if wanted[-1] is Ellipsis else wanted
        for part, kind in zip(value, kinds, strict=False):
            check_type(key, part, kind)


def _needed(kind: type) -> set[str]:
    """The fields without a default."""
    found = fields(kind)
    return {f.name for f in found if f.default is MISSING and f.default_factory is MISSING}


def _names(kind: type | None) -> set[str]:
    return {field.name for field in fields(kind)} if kind else set()


def shard(config: DictConfig) -> Shard:
    """Which part of the cases this process takes."""
    return settings(Shard, config, "shard")
