"""Loads and validates a run's configuration from a YAML file and ``--set section.key=value`` overrides.

The value of an override is taken literally if the setting is a string, and parsed as YAML otherwise. Errors for unknown
keys suggest the nearest valid key.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from jsfree.config.settings import RunConfig, fingerprinted_settings
from jsfree.config.strict_yaml import read_mapping, read_value, unquote
from jsfree.errors import ConfigError
from jsfree.texts import is_text

SectionT = TypeVar("SectionT", bound=BaseModel)


def load(
    path: str | Path | None, overrides: Sequence[str] = (), values: Mapping[str, str | int | None] | None = None
) -> RunConfig:
    """Load a configuration file and apply overrides.

    Args:
        path: a YAML file in UTF-8, or None for the defaults.
        overrides: strings ``key.path=value``, parsed by ``parse_override``.
        values: values by dotted key, used without parsing. They take precedence over ``overrides``; None is ignored.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is invalid.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", "correct the path") from error
        settings = read_mapping(content, str(path))
    _apply(settings, overrides, values or {})
    return build(settings, where=str(path) if path is not None else "--set")


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a copy of ``config`` with ``key.path=value`` overrides.

    Raises:
        ConfigError: a key is unknown or a value is invalid.
    """
    settings = config.model_dump(mode="json")
    _apply(settings, overrides, {})
    return build(settings, where="--set")


def parse_override(override: str) -> tuple[str, Any]:
    """Parse ``key.path=value`` into the dotted key and the value.

    If the setting is a string, the value is taken literally, including ``#``, ``:`` and spaces; quotes that enclose all
    of it are removed. If the setting may be null, ``null``, ``~`` and the empty string mean null. The values of other
    settings are parsed as YAML.

    Raises:
        ConfigError: ``=`` is missing, or the value is not valid YAML.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"--set {override!r} has no key or no '='", "write key=value, for example --set source.count=100"
        )
    kind = _annotation(key.split("."))
    if kind is None or not _is_string(kind):
        return key, read_value(text, f"--set {override!r}: the value")
    if NoneType in _members(kind) and text.strip() in ("", "~", "null", "Null", "NULL"):
        return key, None
    unquoted_text = unquote(text)
    return key, text if unquoted_text is None else unquoted_text


def format_override(key: str, value: str | int) -> str:
    """Format ``key.path=value`` such that ``parse_override`` returns ``value``."""
    override = f"{key}={value}"
    if isinstance(value, str) and parse_override(override)[1] != value:
        return f"{key}={json.dumps(value, ensure_ascii=False)}"
    return override


def build(settings: Mapping[str, Any], where: str) -> RunConfig:
    """Validate ``settings`` and build the configuration.

    Args:
        where: source of the settings (a file name or an option), for error messages.

    Raises:
        ConfigError: a key is unknown or a value is invalid.
    """
    return validate(RunConfig, settings, where)


def validate(kind: type[SectionT], settings: Mapping[str, Any], where: str) -> SectionT:
    """Validate ``settings`` as a section of kind ``kind``, with the errors of ``build``.

    Raises:
        ConfigError: a key is unknown or a value is invalid.
    """
    _check_texts(settings, where)
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        problems, remedies = zip(*(_explain(each, kind) for each in error.errors()), strict=True)
        raise ConfigError(f"{where}: {'; '.join(problems)}", "; ".join(filter(None, remedies))) from None


def assign(settings: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the value of a dotted key in unvalidated settings, in place; missing sections are created.

    Args:
        where: source of the value, for error messages.

    Raises:
        ConfigError: a parent of the key is a value instead of a section.
    """
    *parents, last = key.split(".")
    section = settings
    for parent in parents:
        child = section.get(parent)
        if child is None:
            child = section[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{where}: {parent!r} is a value, not a section", "correct the key")
        section = child
    section[last] = value


def _check_texts(value: Any, where: str) -> None:
    """Refuse keys and values that cannot be written to a file; bytes that are not UTF-8 are allowed, for paths.

    Raises:
        ConfigError: a string contains a lone surrogate or a null character.
    """
    if isinstance(value, str) and not (is_text(value, escaped_bytes=True) and "\0" not in value):
        raise ConfigError(f"{where}: {value!r} contains a lone surrogate or a null character", "remove it")
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_texts(key, where)
            _check_texts(each, f"{where}: {key}")
    elif isinstance(value, list | tuple):
        for each in value:
            _check_texts(each, where)


def changed_settings(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The fingerprinted settings that differ, with both values, by key."""
    before, after = (dict(_flat(fingerprinted_settings(config))) for config in (old, new))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key) and key != "run"]
    return {key: (before.get(key), after.get(key)) for key in keys}


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """List the fingerprinted settings that differ, each as ``key: old -> new``."""
    return [f"{key}: {before} -> {after}" for key, (before, after) in changed_settings(old, new).items()]


def _apply(settings: dict[str, Any], overrides: Sequence[str], values: Mapping[str, Any]) -> None:
    """Apply overrides, then values that are not None, to unvalidated settings, in place."""
    changes = [(f"--set {override!r}", *parse_override(override)) for override in overrides]
    changes += [(key, key, value) for key, value in values.items() if value is not None]
    for where, key, value in changes:
        assign(settings, key, value, where)


def _explain(problem: Mapping[str, Any], root: type[BaseModel]) -> tuple[str, str]:
    """Describe a pydantic error of a ``root``: the problem, with the key, and the remedy, which may be empty."""
    location = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        valid = _sibling_keys(location, root)
        nearest = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid keys: {', '.join(valid)}"
        return f"unknown key {key!r}", hint
    message = problem["msg"].removeprefix("Value error, ")
    value = problem.get("input")
    shown = f" (got {value!r})" if isinstance(value, str | int | float | bool | date | None) else ""
    hint = "put it in quotes" if problem["type"] == "string_type" and shown and value is not None else ""
    return f"{key or 'configuration'}: {message}{shown}", hint


def _sibling_keys(location: Sequence[str], root: type[BaseModel]) -> list[str]:
    """List the valid keys of the section that contains the key at ``location``."""
    sections = [member for member in _members(_annotation(location[:-1], root)) if _is_section(member)]
    return list(sections[0].model_fields) if sections else []


def _annotation(path: Sequence[str], root: type[BaseModel] = RunConfig) -> Any:
    """Return the type annotation of the setting at a path of keys, or None if there is no such setting."""
    annotation: Any = root
    for part in path:
        members = _members(annotation)
        fields = [member.model_fields[part].annotation for member in members if part in _fields(member)]
        values = [get_args(member)[1] for member in members if get_origin(member) is dict]  # any key is valid
        annotation = next(iter([*fields, *values]), None)
    return annotation


def _members(annotation: Any) -> list[Any]:
    """Split a union into its types; ``Annotated`` is removed."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for each in get_args(annotation) for member in _members(each)]
    return [annotation]


def _is_string(annotation: Any) -> bool:
    """Whether a setting is a string or a choice of strings, possibly optional."""
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
