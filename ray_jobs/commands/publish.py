"""``jsfree publish``: checks that a round's model is complete, and copies it to the hub or into a folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from jsfree.errors import RunError
from jsfree.evaluation.rounds_stop import good_rounds
from jsfree.models.contents import CARD
from jsfree.publishing.model_card import card, write_card
from jsfree.publishing.upload import (
    SCHEME,
    HubRepo,
    check_target,
    contents,
    copy,
    local_copy,
    make_repo,
    obstacles,
    upload,
    verify,
)
from jsfree.run.folder import Folder
from jsfree.run.locations import require_base_from_here, require_outside_sources
from jsfree.run.run import Run

if TYPE_CHECKING:
    from jsfree.publishing.parity import Parity


@dataclass(frozen=True)
class Publication:
    """A plan to publish a model.

    Attributes:
        number: the round whose model is published.
        to: the target as given on the command line.
        repo: the target if it is a repository of the hub.
        files: size in bytes of each file.
        missing: what prevents publishing; empty if nothing does.
    """

    run: Run
    number: int
    to: str
    repo: HubRepo | None
    files: Mapping[str, int]
    missing: list[str]

    @property
    def folder(self) -> Folder:
        """The model's folder."""
        return self.run.stage(self.number, "model")


def publish_model(
    uri: str, number: int | None, to: str, console: Console, *, private: bool, dry_run: bool
) -> dict[str, Any]:
    """Publish a round's model, or with ``dry_run`` only list its files.

    Nothing is published if something is ``missing``.

    Returns:
        The result as printed by ``--json``.

    Raises:
        JsfreeError: there is no such model, it is damaged, or it cannot be written to the target.
    """
    plan = plan_publication(Run.existing(uri), number, to)
    _print(plan, console)
    result: dict[str, Any] = {
        "model": plan.folder.uri,
        "round": plan.number,
        "to": plan.to,
        "files": plan.files,
        "missing": plan.missing,
        "dry_run": dry_run,
    }
    if plan.missing:
        return result
    if dry_run:
        if plan.folder.is_local:  # a remote model would have to be downloaded
            verify(Path(plan.folder.path), plan.folder.uri)
        return result
    return result | _publish(plan, console, private=private)


def plan_publication(run: Run, number: int | None, to: str) -> Publication:
    """Collect the files of a model and everything that prevents publishing it; writes nothing.

    Raises:
        ConfigError: ``to`` is not a valid target.
        RunError: the round has no trained model.
    """
    repo = HubRepo.parse(to) if to.startswith(SCHEME) else None
    number = _trained_round(run, number)
    folder = run.stage(number, "model")
    require_base_from_here(run)
    if repo is None:
        target = Folder(to)
        check_target(target, folder)
        require_outside_sources("--to", target, run.config)
    found = contents(folder, adapter=run.config.train.lora is not None)
    sizes = {**found.files, CARD: len(card(run, number).encode())}
    missing = found.missing + ([] if repo is None else obstacles(repo))
    return Publication(run, number, to, repo, dict(sorted(sizes.items())), missing)


def _trained_round(run: Run, number: int | None) -> int:
    trained = [each for each in range(1, run.config.rounds + 1) if run.manifest(each, "train") is not None]
    if not trained:
        finish = f"jsfree run --run {shlex.quote(run.folder.uri)}"
        raise RunError(f"{run.folder.uri} has no trained model yet", f"finish it with `{finish}`")
    if number is not None and number not in trained:
        raise RunError(
            f"--round {number}: {run.folder.uri} has no such model", f"choose from {', '.join(map(str, trained))}"
        )
    return good_rounds(run, trained)[-1] if number is None else number


def _publish(plan: Publication, console: Console, *, private: bool) -> dict[str, Any]:
    """Verify the files, compare a LoRA adapter with the merged weights, write the model card, and copy everything."""
    result: dict[str, Any] = {}
    if plan.repo is not None:
        make_repo(plan.repo, private=private)  # first: the token may not allow it
    write_card(plan.run, plan.number)
    with local_copy(plan.folder) as local:
        if plan.run.config.train.lora is not None:
            console.print("Comparing the adapter with the merged weights ...")
            comparison = _compare_adapter(plan, local)
            result["parity"] = asdict(comparison)
            console.print(
                f"  logits differ by {comparison.difference:.1e} of the largest (at most {comparison.tolerance:.0e})"
            )
        if plan.repo is None:
            copy(local, Folder(plan.to))
            result["address"] = Folder(plan.to).uri
        else:
            message = f"m{plan.number} of jsfree, fingerprint {plan.run.config.own_fingerprint}"
            result["address"] = upload(local, plan.repo, message)
    console.print(f"Published: {result['address']}", soft_wrap=True)
    return result


def _compare_adapter(plan: Publication, local: Path) -> Parity:
    from jsfree.publishing.parity import parity, require_parity

    config = plan.run.config
    first = plan.number == 1
    base = config.captioner.versioned_ref if first else plan.run.stage(plan.number - 1, "model").uri
    comparison = parity(base, local, config.captioner, config.prompt, config.models)
    require_parity(comparison, plan.folder.uri)
    return comparison


def _print(plan: Publication, console: Console) -> None:
    console.print(f"m{plan.number}: {plan.folder.uri} -> {plan.to}", soft_wrap=True)
    for name, size in plan.files.items():
        console.print(f"  {size:>15,}  {name}", soft_wrap=True)
    console.print(f"  {sum(plan.files.values()):>15,}  bytes in {len(plan.files)} files")
    for each in plan.missing:
        console.print(Text.assemble(("missing:", "bold red"), f" {each}"), soft_wrap=True)
