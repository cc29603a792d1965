"""Reads YAML without silently losing anything: duplicate keys, comments inside values and other encodings are refused.

PyYAML keeps the last of two equal keys, reads ``no`` as a boolean key, cuts a value at `` #``, and follows aliases
into structures of any size. ``read_mapping`` and ``read_value`` raise ``ConfigError`` with the line instead.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Any

import yaml

from jsfree.errors import ConfigError

MAX_NODES = 100_000
"""Largest document, in keys and values, with every alias written out."""
MERGE = "tag:yaml.org,2002:merge"
TEXT = "tag:yaml.org,2002:str"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode(content: bytes, where: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        ConfigError: it is in another encoding; the message names the line.
    """
    encoding = "utf-16" if content.startswith(UTF16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{where}: line {line} is not {encoding.removesuffix('-sig').upper()} (byte 0x{content[error.start]:02x});"
            " save the file as UTF-8"
        ) from None


def read_mapping(content: bytes, where: str) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Args:
        content: the bytes of the file.
        where: the file's name, for errors.

    Raises:
        ConfigError: the file is not UTF-8 or not valid YAML, repeats a key, has a key that is not text, expands to
            more than ``MAX_NODES`` nodes, or holds something else than a mapping.
    """
    value = _read(decode(content, where), where)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{where}: expected keys and values at the top, found {type(value).__name__}")
    return value or {}


def read_value(text: str, where: str) -> Any:
    """The YAML value of a command-line argument.

    Raises:
        ConfigError: as ``read_mapping``, or the text holds a comment.
    """
    if _has_comment(text):
        raise ConfigError(f"{where}: YAML reads '#' as the start of a comment", "write texts with '#' in quotes")
    return _read(text, where)


def unquoted(text: str) -> str | None:
    """The content of a text that is one quoted YAML string from end to end; None for every other text."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        return None
    try:
        tokens = [token for token in yaml.scan(text, yaml.SafeLoader) if isinstance(token, yaml.ScalarToken)]
        value = yaml.safe_load(text) if len(tokens) == 1 else None
    except (yaml.YAMLError, ValueError):
        return None
    return value if isinstance(value, str) else None


def _read(text: str, where: str) -> Any:
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, where, set(), {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is no valid YAML: {_problem(error)}") from None
    except (ValueError, LookupError, AttributeError, ArithmeticError) as error:  # not a value of the tag that is named
        raise ConfigError(f"{where} is no valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: sections are nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    parts = (getattr(error, "context", None), getattr(error, "problem", None))
    return f"line {mark.line + 1}, column {mark.column + 1}: {', '.join(filter(None, parts))}"


def _check(node: yaml.Node, where: str, open_nodes: set[int], sizes: dict[int, int]) -> int:
    """Check keys and size of a node and of all below it; its number of nodes with every alias written out."""
    if id(node) in sizes:
        return sizes[id(node)]
    line = node.start_mark.line + 1
    if id(node) in open_nodes:
        raise ConfigError(f"{where}: line {line}: an alias refers to a section that it is part of", "write it out")
    open_nodes.add(id(node))
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, where)
    size = 1 + sum(_check(child, where, open_nodes, sizes) for child in _children(node))
    if size > MAX_NODES:
        raise ConfigError(f"{where}: line {line}: aliases expand to more than {MAX_NODES:,} values", "write them out")
    open_nodes.remove(id(node))
    sizes[id(node)] = size
    return size


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag not in (TEXT, MERGE):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "that begins here"
            kind = key.tag.rpartition(":")[2]
            raise ConfigError(
                f"{where}: line {line}: the key {shown} is read as {kind}, not as text", "put it in quotes"
            )
        if key.value in lines:
            raise ConfigError(
                f"{where}: the key {key.value!r} is given twice, in lines {lines[key.value]} and {line}", "keep one"
            )
        lines[key.value] = line


def _has_comment(text: str) -> bool:
    """Whether YAML leaves out a part of a text that is more than space."""
    try:
        tokens = list(yaml.scan(text, yaml.SafeLoader))
    except yaml.YAMLError:
        return False  # reading it says what is wrong
    covered = bytearray(len(text))
    for token in tokens:
        covered[token.start_mark.index : token.end_mark.index] = b"\1" * (token.end_mark.index - token.start_mark.index)
    return any(not seen and not character.isspace() for seen, character in zip(covered, text, strict=True))
