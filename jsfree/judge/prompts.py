"""Prompts of judges: versioned text files with ``$name`` placeholders, identified in results by their hash.

A file is named ``<name>.v<version>.txt``. A changed prompt is a new version in a new file, because results of different
prompts do not compare.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from string import Template

from jsfree.errors import ConfigError


@dataclass(frozen=True)
class Prompt:
    """A prompt template."""

    name: str
    version: int
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the template, before it is filled in."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, **values: str) -> str:
        """The text with its placeholders replaced; values are inserted verbatim, whatever they contain.

        Raises:
            ConfigError: a placeholder has no value, or a value has no placeholder.
        """
        template = Template(self.text)
        wanted = set(template.get_identifiers())
        if wanted != values.keys():
            raise ConfigError(
                f"the prompt {self.name} takes {sorted(wanted)}, not {sorted(values)}", "pass one value each"
            )
        return template.substitute(values)

    def as_json(self) -> dict[str, str | int]:
        """The prompt as results record it."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}


def load_prompt(package: str, name: str, version: int) -> Prompt:
    """Read the prompt ``<name>.v<version>.txt`` of a package.

    Raises:
        ConfigError: the package has no such file.
    """
    file = resources.files(package) / f"{name}.v{version}.txt"
    try:
        return Prompt(name, version, file.read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        raise ConfigError(f"{package} has no prompt {name!r} of version {version}", "reinstall jsfree") from None
