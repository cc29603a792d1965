"""The folder of a run: its configuration, its rounds, and the manifests of its stages.

    <run>/config.yaml  run.json  report/index.html
    <run>/round-k/samples/ pairs/ scored/ selected/ reference/ features/ train/ model/ captions/ metrics.json
    <run>/round-k/errors/<stage>/    rows that failed
    <run>/round-k/<stage>/_inputs.json, _manifest.json

``_inputs.json`` is the first file of a stage to be written and the last to be removed; the manifest is the last to be
written and the first to be removed. Both hold the fingerprint of everything the stage depends on. A stage that has
files but no ``_inputs.json`` is refused, because its inputs are unknown.

A run is identified by the folder that holds it. The key ``run`` in its ``config.yaml`` records where it was started
and is ignored when the run is opened.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass, field
from typing import Any

from jsfree import config as configuration
from jsfree.config import RunConfig
from jsfree.config.strict_yaml import read_mapping
from jsfree.errors import RunError
from jsfree.run.folder import Folder

CONFIG = "config.yaml"
INPUTS, MANIFEST = "_inputs.json", "_manifest.json"
SHOWN_DIFFERENCES = 4
ROUND = re.compile(r"round-([1-9][0-9]*)")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Counts and costs of a finished stage, stored as ``_manifest.json``.

    ``seconds`` is wall time; ``device_seconds`` is the time replicas spent on rows, summed over replicas (on a GPU,
    or on a CPU if the stage has none); ``tokens`` counts generated, scored or trained tokens. ``facts`` are further
    numbers of the particular stage. ``reused_from`` is the run that made the stage, if it was taken from another one;
    the costs are then those of that run.
    """

    fingerprint: str = ""
    rows_in: int
    rows_out: int
    rows_failed: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    tokens: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    reused_from: str = ""


class Run:
    """The folder of a run, with its configuration."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.folder = Folder(config.run)

    @classmethod
    def open(cls, config: RunConfig) -> Run:
        """Open the run in the folder ``config.run``; create it if it does not exist.

        Raises:
            StorageError: the folder cannot be created or written.
        """
        run = cls(config)
        if not run.folder.exists(CONFIG):
            run.store_config()
        return run

    @classmethod
    def existing(cls, uri: str) -> Run:
        """Open the run in the folder ``uri`` with its stored configuration.

        Raises:
            RunError: there is no run at ``uri``.
        """
        folder = Folder(uri)
        return cls(stored_config(folder).model_copy(update={"run": folder.uri}))

    def rounds(self) -> list[int]:
        """Numbers of the rounds that have a folder, in order."""
        return sorted(int(match[1]) for match in map(ROUND.fullmatch, self.folder.names()) if match)

    def round(self, number: int) -> Folder:
        """The folder of a round; rounds are counted from 1."""
        return self.folder / f"round-{number}"

    def stage(self, number: int, name: str) -> Folder:
        """The folder of a stage of a round."""
        return self.round(number) / name

    def errors(self, number: int, name: str) -> Folder:
        """The folder of the rows that failed in a stage of a round."""
        return self.round(number) / "errors" / name

    def manifest(self, number: int, stage: str) -> Manifest | None:
        """The manifest of a stage; None if the stage is not finished."""
        folder = self.stage(number, stage)
        return Manifest(**folder.read_json(MANIFEST)) if folder.exists(MANIFEST) else None

    def begin(self, number: int, stage: str, fingerprint: str) -> Manifest | None:
        """Record the inputs of a stage that is about to start or resume.

        Args:
            fingerprint: hash of everything the stage depends on.

        Returns:
            The manifest if the stage has already finished with the same inputs, else None.

        Raises:
            RunError: files of the stage were made from other inputs, or from inputs that are not recorded.
        """
        folder = self.stage(number, stage)
        inputs = folder.read_json(INPUTS)["fingerprint"] if folder.exists(INPUTS) else None
        done = self.manifest(number, stage)
        if inputs is None and (done is not None or any(not name.startswith(".") for name in folder.names())):
            raise RunError(
                f"{folder.uri} holds files but no {INPUTS}, so their inputs are unknown (a removal was interrupted, or"
                f" a copy is incomplete)",
                f"redo the stage with --restart {stage.split('/')[0]}",
            )
        if inputs not in (None, fingerprint) or (done is not None and done.fingerprint != fingerprint):
            raise self._mismatch(number, stage)
        if inputs is None:
            folder.write_json(INPUTS, {"fingerprint": fingerprint})
        return done

    def finish(self, number: int, stage: str, manifest: Manifest) -> Manifest:
        """Publish the manifest of a finished stage, and the configuration that made it."""
        self.stage(number, stage).write_json(MANIFEST, asdict(manifest))
        self.store_config()
        return manifest

    def store_config(self) -> None:
        """Store the configuration in the run's folder, in place of the one with which it was last used."""
        self.folder.write(CONFIG, self.config.to_yaml().encode())

    def _mismatch(self, number: int, stage: str) -> RunError:
        changed = configuration.differences(stored_config(self.folder), self.config)
        if len(changed) > SHOWN_DIFFERENCES:
            changed = [*changed[:SHOWN_DIFFERENCES], "..."]
        return RunError(
            f"{self.folder.uri}: stage {stage!r} of round {number} was made with other settings"
            f" ({'; '.join(changed) or 'an earlier stage was redone'})",
            f"choose another folder with --run, or redo it with --restart {stage.split('/')[0]}",
        )


def stored_config(folder: Folder) -> RunConfig:
    """The configuration stored in a run's folder.

    Raises:
        RunError: there is no run in ``folder``.
    """
    if not folder.exists(CONFIG):
        start = f"jsfree run --run {shlex.quote(folder.uri)}"
        raise RunError(f"{folder.uri} holds no run (no {CONFIG})", f"start one with `{start}`")
    return configuration.build(stored_settings(folder), f"{folder.uri}/{CONFIG}")


def stored_settings(folder: Folder) -> dict[str, Any]:
    """The settings in the ``config.yaml`` of a run's folder, without defaults."""
    return read_mapping(folder.read(CONFIG), f"{folder.uri}/{CONFIG}")
