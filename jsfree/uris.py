"""Syntax of locations: whether a string is a local path, a URI such as ``s3://bucket/x``, or the name of a model."""

from __future__ import annotations

import re

LOCAL_SCHEMES = ("file://", "local://")
"""Schemes of the local filesystem."""
PACKAGED = "miniworld:"
"""Prefix of the models that are shipped with jsfree."""
_PATH_PREFIXES = ("/", "./", "../", "~")
_SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def has_scheme(path: str) -> bool:
    """Whether ``path`` is a URI, as opposed to a local path; ``file://`` is a scheme too."""
    return "://" in path and _SCHEME.match(path) is not None


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URI of another filesystem than the local one."""
    return has_scheme(path) and not path.startswith(LOCAL_SCHEMES)


def local_path(uri: str) -> str:
    """Remove the scheme of the local filesystem, if there is one."""
    for scheme in LOCAL_SCHEMES:
        uri = uri.removeprefix(scheme)
    return uri


def is_written_as_path(ref: str) -> bool:
    """Whether a model reference is unmistakably a local path (``/x``, ``./x``, ``../x`` or ``~/x``)."""
    return ref.startswith(_PATH_PREFIXES)


def is_hub_syntax(ref: str) -> bool:
    """Whether a model reference can be a hub id: neither a URI, nor a packaged model, nor written as a path."""
    return not (has_scheme(ref) or ref.startswith(PACKAGED) or is_written_as_path(ref))
