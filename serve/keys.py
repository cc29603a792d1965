"""API keys of the server: made here, stored as hashes, and compared in constant time.

The server never stores a key itself. A key comes from ``--api-key`` or ``JSFREE_API_KEY``, or was made by
``jsfree serve keys add NAME``, which prints it once and keeps its SHA-256. Keys made here have 256 random bits, so a
fast hash is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jsfree.config import Serve
from jsfree.errors import ConfigError, StorageError

log = logging.getLogger(__name__)
API_KEY, KEYS_FILE = "JSFREE_API_KEY", "JSFREE_KEYS_FILE"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
PREFIX = "jsfree-"
RELOAD_SECONDS = 5.0
"""Seconds after which a changed file of keys is read again."""

Access = Literal["captions", "metrics", "all"]
"""What a key may do: ask the models, read ``/metrics``, or both."""
PerMinute = Annotated[int, Field(ge=1)]


class Key(BaseModel):
    """A key as the server knows it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    access: Access = "captions"
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    created: str = ""


class KeyFile(BaseModel):
    """The content of a file of keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    keys: list[Key] = []


def new_secret() -> str:
    """A new random key."""
    return PREFIX + secrets.token_urlsafe(32)


def sha256(secret: str) -> str:
    """The hash of a key as it is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class KeySource:
    """Where a server's keys come from; it can be sent to another process, and contains no key.

    Attributes:
        fixed: keys that were given to the command.
        file: file of keys, which is read again when it changes.
    """

    fixed: tuple[Key, ...] = ()
    file: str | None = None

    @classmethod
    def configured(
        cls, settings: Serve, environment: Mapping[str, str] = os.environ, api_key: str | None = None
    ) -> KeySource:
        """The keys for a server: of ``--api-key`` or ``JSFREE_API_KEY``, and of the file of keys.

        Raises:
            ConfigError: the file cannot be used, a key is blank, or there is no key, and the address is open to other
                machines.
        """
        given = api_key or environment.get(API_KEY) or ""
        secret = given.strip()  # a Secret made from a file often ends with a line break
        if given and not secret:
            raise ConfigError("the API key is blank", f"set {API_KEY} to a key, or unset it")
        fixed = (Key(name="api-key", sha256=sha256(secret), access="all"),) if secret else ()
        file = keys_file(settings, environment)
        is_used = file.exists() or file != default_file()
        source = cls(fixed, str(file.absolute()) if is_used else None)
        if source.file is not None:
            read_keys(Path(source.file))
        if not source.is_empty or settings.no_auth or is_loopback(settings.host):
            return source
        raise ConfigError(
            f"serve.host: {settings.host} can be reached from other machines, but the server has no keys",
            f"make a key with `jsfree serve keys add NAME`, set {API_KEY}, or say --no-auth",
        )

    @property
    def is_empty(self) -> bool:
        """Whether requests need no key: a server with a file of keys wants one, even while the file is empty."""
        return not self.fixed and self.file is None


NO_KEYS = KeySource()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def keys_file(settings: Serve, environment: Mapping[str, str] = os.environ) -> Path:
    """The file of keys of a server, which may not exist."""
    return Path(settings.keys_file or environment.get(KEYS_FILE) or default_file()).expanduser()


def checked_name(name: str) -> str:
    """Return the name for a key.

    Raises:
        ConfigError: it contains other characters than letters, digits and ``._-``, or is too long.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a key", "use up to 64 letters, digits, dots, hyphens and underscores")
    return name


class Keyring:
    """The keys of a running server.

    Raises:
        ConfigError: the file of keys cannot be used.
    """

    def __init__(self, source: KeySource) -> None:
        self._source = source
        self._file = Path(source.file) if source.file else None
        self._changed = self._modification()  # before reading: a later change is then noticed
        self._stored: list[Key] = read_keys(self._file) if self._file else []
        self._checked = time.monotonic()

    @property
    def is_empty(self) -> bool:
        """Whether requests need no key."""
        return self._source.is_empty

    def find(self, secret: str) -> Key | None:
        """The key that a client sent; the time that this takes does not depend on which key it is."""
        self._reload()
        given = sha256(secret)
        found = None
        for key in (*self._source.fixed, *self._stored):
            if hmac.compare_digest(key.sha256, given):
                found = key
        return found

    def _reload(self) -> None:
        """Read the file again if it has changed; while it cannot be read, the keys known so far stay valid."""
        if self._file is None or time.monotonic() < self._checked + RELOAD_SECONDS:
            return
        self._checked = time.monotonic()
        changed = self._modification()
        if changed == self._changed:
            return
        try:
            self._stored = read_keys(self._file)
            self._changed = changed
        except ConfigError as error:
            log.error("the file of keys has changed and cannot be used; its earlier keys stay valid: %s", error.problem)

    def _modification(self) -> tuple[int, int] | None:
        """Time of modification in nanoseconds, and the number of the inode: Kubernetes replaces mounted files."""
        with suppress(OSError):
            if self._file is not None:
                stat = self._file.stat()
                return stat.st_mtime_ns, stat.st_ino
        return None


def default_file() -> Path:
    """The file of keys of this user: ``~/.config/jsfree/serve-keys.json``, or below ``XDG_CONFIG_HOME``."""
    try:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    except RuntimeError:  # no home folder
        base = Path("/nonexistent")
    return base / "jsfree" / "serve-keys.json"


def read_keys(file: Path) -> list[Key]:
    """Read a file of keys.

    Raises:
        ConfigError: it is missing, or not a valid file of keys.
    """
    try:
        return KeyFile.model_validate(json.loads(file.read_text(encoding="utf-8"))).keys
    except OSError as error:
        remedy = "make it with `jsfree serve keys add NAME`"
        raise ConfigError(f"the file of keys {file} cannot be read ({error.strerror})", remedy) from error
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"the file of keys {file}: {where}: {problem['msg'].lower()}", "correct it") from None
    except ValueError:
        raise ConfigError(f"the file of keys {file} is not valid JSON", "correct it, or make another") from None


def add_key(file: Path, key: Key) -> None:
    """Add a key to a file, which is made if it is missing.

    Raises:
        ConfigError: there is a key of this name, or the file is not valid.
        StorageError: the file cannot be written.
    """
    keys = read_keys(file) if file.exists() else []
    if any(other.name == key.name for other in keys):
        raise ConfigError(
            f"{file} has a key named {key.name!r}", f"remove it first: `jsfree serve keys remove {key.name}`"
        )
    _write(file, [*keys, key])


def remove_key(file: Path, name: str) -> None:
    """Remove a key from a file; a running server notices within ``RELOAD_SECONDS``.

    Raises:
        ConfigError: there is no such key, or the file is not valid.
        StorageError: the file cannot be written.
    """
    keys = read_keys(file)
    remaining = [key for key in keys if key.name != name]
    if len(remaining) == len(keys):
        names = ", ".join(key.name for key in keys) or "none"
        raise ConfigError(f"{file} has no key named {name!r}", f"its keys: {names}")
    _write(file, remaining)


def today() -> str:
    """The date that a new key is stored with."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _write(file: Path, keys: Sequence[Key]) -> None:
    """Replace a file of keys at once; only its owner can read it."""
    content = json.dumps({"keys": [key.model_dump(exclude_none=True) for key in keys]}, indent=2) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, encoding="utf-8", delete=False) as partial:
            partial.write(content)
        os.replace(partial.name, file)
    except OSError as error:
        raise StorageError(f"the file of keys {file} cannot be written ({error.strerror})") from error
