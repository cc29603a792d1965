"""Reads a run's configuration: a YAML file, overrides of single settings, and checks with clear errors.

``load(path, overrides)`` reads a YAML file; ``--set section.key=value`` overrides one value: a text where the setting
is a text, YAML elsewhere. An unknown key raises with the nearest valid one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from jsfree.config.settings import RunConfig, deciding_settings
from jsfree.config.strict_yaml import read_mapping, read_value, unquoted
from jsfree.errors import ConfigError
from jsfree.texts import is_text


def load(
    path: str | Path | None, overrides: Sequence[str] = (), values: Mapping[str, str | int | None] | None = None
) -> RunConfig:
    """Read a configuration file and apply overrides.

    Args:
        path: a YAML file in UTF-8; None for the defaults.
        overrides: ``key.path=value`` texts, as ``--set`` takes them (``parsed_override``).
        values: settings by dotted key, taken as they are; None leaves a setting alone. They win over ``overrides``.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is wrong.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        settings = read_mapping(content, str(path))
    _apply(settings, overrides, values or {})
    return build(settings, where=str(path) if path is not None else "--set")


def overridden(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """``config`` with ``key.path=value`` overrides.

    Raises:
        ConfigError: a key is unknown or a value is wrong.
    """
    settings = config.model_dump(mode="json")
    _apply(settings, overrides, {})
    return build(settings, where="--set")


def parsed_override(override: str) -> tuple[str, Any]:
    """The dotted key and the value of a ``key.path=value`` text.

    The value of a setting that is a text is taken literally, ``#``, ``:`` and spaces included; quotes around the
    whole of it are removed, as YAML does. Where ``null`` is allowed, ``null``, ``~`` and an empty value mean it.
    Other settings are read as YAML.

    Raises:
        ConfigError: there is no ``=``, or the value is not valid YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: write key=value, for example --set source.count=100")
    kind = _annotation(key.split("."))
    if kind is None or not _is_text(kind):
        return key, read_value(text, f"--set {override!r}: the value")
    if NoneType in _members(kind) and text.strip() in ("", "~", "null", "Null", "NULL"):
        return key, None
    inner = unquoted(text)
    return key, text if inner is None else inner


def as_override(key: str, value: str | int) -> str:
    """The ``key.path=value`` text that ``parsed_override`` reads as ``value``."""
    override = f"{key}={value}"
    if isinstance(value, str) and parsed_override(override)[1] != value:
        return f"{key}={json.dumps(value, ensure_ascii=False)}"
    return override


def build(settings: Mapping[str, Any], where: str) -> RunConfig:
    """Check ``settings`` and build the configuration; errors name ``where``, the key and the remedy.

    Raises:
        ConfigError: a key is unknown or a value is wrong.
    """
    _check_texts(settings, where)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        problems, remedies = zip(*map(_explain, error.errors()), strict=True)
        raise ConfigError(f"{where}: {'; '.join(problems)}", "; ".join(filter(None, remedies))) from None


def _check_texts(value: Any, where: str) -> None:
    """Refuse text that no file can hold, in names and values; a path may have bytes that are not UTF-8.

    Raises:
        ConfigError: there is such a text; ``where`` says in which setting.
    """
    if isinstance(value, str) and not (is_text(value, escaped_bytes=True) and "\0" not in value):
        raise ConfigError(f"{where}: {value!r} holds half of a surrogate pair or a zero character", "correct it")
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_texts(key, where)
            _check_texts(each, f"{where}: {key}")
    elif isinstance(value, list | tuple):
        for each in value:
            _check_texts(each, where)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Settings that differ, as ``key: old -> new``, without what only places work."""
    before, after = (dict(_flat(deciding_settings(config))) for config in (old, new))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key) and key != "run"]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


def _apply(settings: dict[str, Any], overrides: Sequence[str], values: Mapping[str, Any]) -> None:
    """Put overrides, and then values that are not None, into settings not yet checked."""
    given = [(f"--set {override!r}", *parsed_override(override)) for override in overrides]
    given += [(key, key, value) for key, value in values.items() if value is not None]
    for where, key, value in given:
        *parents, last = key.split(".")
        section = settings
        for parent in parents:
            child = section.get(parent)
            if child is None:
                child = section[parent] = {}
            if not isinstance(child, dict):
                raise ConfigError(f"{where}: {parent!r} is a value, not a section")
            section = child
        section[last] = value


def _explain(problem: Mapping[str, Any]) -> tuple[str, str]:
    """The problem of a pydantic error, with the key, and its remedy, which may be empty."""
    location = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        valid = _keys_beside(location)
        nearest = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid keys: {', '.join(valid)}"
        return f"unknown key {key!r}", hint
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool | date | None) else ""
    hint = "put it in quotes" if problem["type"] == "string_type" and shown and given is not None else ""
    return f"{key or 'configuration'}: {message}{shown}", hint


def _keys_beside(location: Sequence[str]) -> list[str]:
    """Names that would have been valid in place of the last part of ``location``."""
    sections = [member for member in _members(_annotation(location[:-1])) if _is_section(member)]
    return list(sections[0].model_fields) if sections else []


def _annotation(path: Sequence[str]) -> Any:
    """The type of the setting at a path of keys; None where there is no such setting."""
    annotation: Any = RunConfig
    for part in path:
        members = _members(annotation)
        fields = [member.model_fields[part].annotation for member in members if part in _fields(member)]
        values = [get_args(member)[1] for member in members if get_origin(member) is dict]  # free names, as of modes
        annotation = next(iter([*fields, *values]), None)
    return annotation


def _members(annotation: Any) -> list[Any]:
    """The types of a union, or the type alone, without what only limits their values."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for each in get_args(annotation) for member in _members(each)]
    return [annotation]


def _is_text(annotation: Any) -> bool:
    """Whether a setting is a text, or one of several texts; it may be optional."""
    members = [member for member in _members(annotation) if member is not NoneType]
    return bool(members) and all(
        member is str or (get_origin(member) is Literal and all(isinstance(each, str) for each in get_args(member)))
        for member in members
    )


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _fields(annotation: Any) -> Collection[str]:
    return annotation.model_fields.keys() if _is_section(annotation) else ()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
