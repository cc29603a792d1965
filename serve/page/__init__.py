"""The pages that the server shows in a browser: HTML, style and scripts, joined without a build step.

A page is one document without requests for further files. Its content security policy allows exactly its own style and
scripts, by their hashes, which are computed from the files.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
PAGES = {
    "/": ("compare.html", ("common.js", "picture.js", "marks.js", "sharing.js", "compare.js")),
    "/runs": ("runs.html", ("common.js", "runs.js")),
}
"""By path: the body of the page, and its scripts."""


@dataclass(frozen=True)
class Page:
    """A page and its content security policy."""

    content: bytes
    policy: str


@cache
def page(path: str) -> Page:
    """The page at a path of ``PAGES``."""
    body, scripts = PAGES[path]
    style, script = _read("style.css"), "".join(map(_read, scripts))
    shell = _read("shell.html")
    for name, text in (("BODY", _read(body)), ("STYLE", style), ("SCRIPT", script)):
        shell = shell.replace(f"<!--{name}-->", text)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return Page(shell.encode(), "; ".join(f"{name} {value}" for name, value in policy.items()))


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
