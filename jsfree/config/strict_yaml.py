"""A strict YAML reader that raises ``ConfigError``, with the line, where PyYAML would silently lose or change content.

PyYAML keeps the last of two equal keys, reads the key ``no`` as a boolean, ends a value at `` #``, and expands aliases
without a limit.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Any

import yaml

from jsfree.errors import ConfigError

MAX_NODES = 100_000
"""Maximum number of keys and values in a document after its aliases are expanded."""
MERGE = "tag:yaml.org,2002:merge"
TEXT = "tag:yaml.org,2002:str"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode(content: bytes, where: str) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark.

    Raises:
        ConfigError: the content has another encoding.
    """
    encoding = "utf-16" if content.startswith(UTF16) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{where}: line {line} is not {encoding.removesuffix('-sig').upper()} (byte 0x{content[error.start]:02x})",
            "save the file as UTF-8",
        ) from None


def read_mapping(content: bytes, where: str) -> dict[str, Any]:
    """Parse a YAML file whose top level is a mapping; an empty file is an empty mapping.

    Args:
        content: the bytes of the file.
        where: the file name, for error messages.

    Raises:
        ConfigError: the file is not UTF-8 or not valid YAML, repeats a key, has a key that is not a string, expands to
            more than ``MAX_NODES`` nodes, or is not a mapping.
    """
    value = _read(decode(content, where), where)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(
            f"{where}: expected a mapping at the top level, got {type(value).__name__}",
            "write it as 'key: value' lines",
        )
    return value or {}


def read_value(text: str, where: str) -> Any:
    """Parse a command-line argument as YAML.

    Raises:
        ConfigError: as ``read_mapping``, or the text contains a comment.
    """
    if _has_comment(text):
        raise ConfigError(f"{where}: YAML reads '#' as the start of a comment", "put values with '#' in quotes")
    return _read(text, where)


def unquote(text: str) -> str | None:
    """Parse a text that is, as a whole, one quoted YAML string; return None for any other text."""
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
        raise ConfigError(f"{where} is not valid YAML: {_problem(error)}") from None
    except (ValueError, LookupError, AttributeError, ArithmeticError) as error:  # the value does not fit its tag
        raise ConfigError(f"{where} is not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: values are nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def _problem(error: yaml.YAMLError) -> str:
    """Describe a YAML error and its position in one line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    parts = (getattr(error, "context", None), getattr(error, "problem", None))
    return f"line {mark.line + 1}, column {mark.column + 1}: {', '.join(filter(None, parts))}"


def _check(node: yaml.Node, where: str, open_nodes: set[int], sizes: dict[int, int]) -> int:
    """Validate the keys and the size of a node and its descendants.

    Args:
        open_nodes: ids of the node's ancestors.
        sizes: sizes of validated nodes by id.

    Returns:
        The number of nodes after expansion of aliases.
    """
    if id(node) in sizes:
        return sizes[id(node)]
    line = node.start_mark.line + 1
    if id(node) in open_nodes:
        raise ConfigError(f"{where}: line {line}: an alias refers to its own ancestor", "write the value out")
    open_nodes.add(id(node))
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, where)
    size = 1 + sum(_check(child, where, open_nodes, sizes) for child in _children(node))
    if size > MAX_NODES:
        raise ConfigError(f"{where}: line {line}: aliases expand to more than {MAX_NODES:,} values", "use fewer")
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
            shown = f"the key {key.value}" if isinstance(key, yaml.ScalarNode) else "a key"
            kind = key.tag.rpartition(":")[2]
            raise ConfigError(f"{where}: line {line}: {shown} is read as {kind}, not as a string", "put it in quotes")
        if key.value in lines:
            raise ConfigError(
                f"{where}: duplicate key {key.value!r} in lines {lines[key.value]} and {line}", "remove one of them"
            )
        lines[key.value] = line


def _has_comment(text: str) -> bool:
    """Whether YAML ignores a part of the text other than white space."""
    try:
        tokens = list(yaml.scan(text, yaml.SafeLoader))
    except yaml.YAMLError:
        return False  # parsing it raises the error
    covered = bytearray(len(text))
    for token in tokens:
        covered[token.start_mark.index : token.end_mark.index] = b"\1" * (token.end_mark.index - token.start_mark.index)
    return any(not seen and not character.isspace() for seen, character in zip(covered, text, strict=True))
