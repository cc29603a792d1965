"""Takes finished stages from other runs (``reuse``) that made them from the same inputs.

Only stages with the fingerprint that the run has computed for its own are taken, so a run that reuses stages has the
results that it would have had alone. Two things that results depend on are not part of fingerprints and are compared
as well: the commits of models from the hub, and the evaluation set, whose images are left out of the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from jsfree.errors import RunError
from jsfree.run.folder import PARTIAL, Folder, shard_name
from jsfree.run.lease import holder
from jsfree.run.run import CONFIG, INPUTS, MANIFEST, Manifest, Run
from jsfree.run.stages import LAST_STAGE, part_of

EVALUATION = "evaluation_hashes"
CHECKPOINTS = "checkpoints-"


def excludes_evaluation_images(stage: str) -> bool:
    """Whether the rows of a stage depend on the hashes of the evaluation set, from the pairs to the trained model."""
    part = part_of(stage)
    return stage != "samples" and (part is None or part.stage != LAST_STAGE)


def find_finished(run: Run, number: int, stage: str, fingerprint: str) -> Run | None:
    """The first run of ``reuse`` that has finished a stage with the same inputs; None if there is none."""
    return next((other for other in _runs_with(run, number, stage, fingerprint) if other.manifest(number, stage)), None)


def find_unfinished(run: Run, number: int, stage: str, fingerprint: str) -> Run | None:
    """The first run of ``reuse`` that is making a stage from the same inputs now; None if there is none.

    A run that itself lists this one is left out, so that two runs never wait for each other.
    """
    for other in _runs_with(run, number, stage, fingerprint):
        is_listed_there = run.folder.uri in other.config.reuse
        if other.manifest(number, stage) is None and not is_listed_there and holder(other.folder):
            return other
    return None


def take(run: Run, number: int, stage: str, source: Run) -> Manifest:
    """Publish a finished stage of ``source`` in ``run``, which has begun the stage; return its manifest.

    The manifest is written last. After an interruption, call it again.

    Raises:
        RunError: the stage was removed from ``source`` meanwhile.
        StorageError: a file cannot be read or written.
    """
    made = source.manifest(number, stage)
    for name in _folders(stage):
        target, origin = run.round(number) / name, source.round(number) / name
        for path in origin.sizes():
            if not _is_private(path):
                target.link_from(origin, path)
    if made is None or source.manifest(number, stage) != made:
        raise RunError(
            f"{source.folder.uri}: stage {stage!r} of round {number} was removed while {run.folder.uri} took it over",
            "run the same command again",
        )
    return run.finish(number, stage, replace(made, reused_from=made.reused_from or source.folder.uri))


def take_reference(run: Run, number: int, origin: Mapping[str, str]) -> None:
    """Take the reference log-probabilities of a run of ``reuse`` that trained on the very same pairs, if there is one.

    Args:
        origin: entries that the metadata of the table must have: the reference model, its dtype and preprocessing.

    Raises:
        StorageError: a file cannot be read or written.
    """
    target, table = run.stage(number, "reference"), shard_name(0)
    for uri in run.config.reuse:
        folder = Folder(uri) / f"round-{number}/reference"
        if target.exists(table) or not folder.exists(table) or not _has_same_pairs(run, Run.existing(uri), number):
            continue
        stored = folder.table_metadata(table).get("origin", {})
        if all(stored.get(name) == value for name, value in origin.items()):
            target.link_from(folder, table)


def _has_same_pairs(run: Run, other: Run, number: int) -> bool:
    """Whether the selected pairs of two runs are copies of the same files."""
    made = []
    for each in (run, other):
        manifest = each.manifest(number, "selected")
        made.append(manifest and (manifest.fingerprint, manifest.reused_from or each.folder.uri))
    return made[0] is not None and made[0] == made[1]


def _runs_with(run: Run, number: int, stage: str, fingerprint: str) -> Iterator[Run]:
    """Runs of ``reuse`` that have begun a stage with the same inputs."""
    for uri in run.config.reuse:
        folder = Folder(uri)
        if folder.uri == run.folder.uri or not folder.exists(CONFIG):
            continue
        begun = folder / f"round-{number}" / stage
        if begun.exists(INPUTS) and begun.read_json(INPUTS)["fingerprint"] == fingerprint:
            other = Run.existing(uri)
            if _agree(run, other, stage):
                yield other


def _agree(run: Run, other: Run, stage: str) -> bool:
    """Whether two runs agree in what fingerprints leave out."""
    commits = other.config.models.commits
    if any(commits.get(model, commit) != commit for model, commit in run.config.models.commits.items()):
        return False
    if not excludes_evaluation_images(stage):
        return True
    own, others = run.manifest(1, EVALUATION), other.manifest(1, EVALUATION)
    return (own.fingerprint if own else None) == (others.fingerprint if others else None)


def _folders(stage: str) -> list[str]:
    """The folders of a round that belong to a stage, with its rows that failed."""
    part = part_of(stage)
    written = (stage,) if part is None or part.per_model else part.writes or (stage,)
    return [*written, f"errors/{stage}"]


def _is_private(path: str) -> bool:
    """Whether a file must not be taken: records of inputs, checkpoints of training, files of killed writers."""
    name = path.rsplit("/", 1)[-1]
    return path in (INPUTS, MANIFEST) or path.startswith(CHECKPOINTS) or PARTIAL.match(name) is not None
