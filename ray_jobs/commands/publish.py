"""``jsfree publish``: a round's model for others, on the hub or in a folder, after a look whether it is whole."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from jsfree.errors import RunError
from jsfree.models.contents import CARD
from jsfree.publishing.model_card import card, write_card
from jsfree.publishing.upload import (
    SCHEME,
    HubRepo,
    contents,
    copy,
    make_repo,
    obstacles,
    on_this_machine,
    require_free,
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
    """What is to be published: round ``number`` of a run, where to, and what is in the way."""

    run: Run
    number: int
    to: str
    repo: HubRepo | None
    files: Mapping[str, int]
    missing: list[str]

    @property
    def folder(self) -> Folder:
        """Where the model is."""
        return self.run.stage(self.number, "model")


def publish_model(
    uri: str, number: int | None, to: str, console: Console, *, private: bool, dry_run: bool
) -> dict[str, Any]:
    """Publish a round's model, or with ``dry_run`` only say what would be; what came of it.

    Nothing is published while anything is ``missing``.

    Raises:
        JsfreeError: there is no such model, it is damaged, or it cannot go there.
    """
    plan = planned(Run.existing(uri), number, to)
    _print(plan, console)
    told: dict[str, Any] = {
        "model": plan.folder.uri,
        "round": plan.number,
        "to": plan.to,
        "files": plan.files,
        "missing": plan.missing,
        "dry_run": dry_run,
    }
    if plan.missing:
        return told
    if dry_run:
        if plan.folder.is_local:  # else it would have to be fetched
            verify(Path(plan.folder.path), plan.folder.uri)
        return told
    return told | _carried_out(plan, console, private=private)


def planned(run: Run, number: int | None, to: str) -> Publication:
    """See what there is to publish; touches nothing.

    Raises:
        ConfigError: ``to`` is no place for it.
        RunError: the round has no trained model.
    """
    repo = HubRepo.parse(to) if to.startswith(SCHEME) else None
    number = _trained_round(run, number)
    folder = run.stage(number, "model")
    require_base_from_here(run)
    if repo is None:
        target = Folder(to)
        require_free(target, folder)
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
        raise RunError(f"--round {number}: {run.folder.uri} has models of rounds {', '.join(map(str, trained))}")
    return trained[-1] if number is None else number


def _carried_out(plan: Publication, console: Console, *, private: bool) -> dict[str, Any]:
    """Verify the files, compare adapter and weights where there is one, write the card, and take it all there."""
    told: dict[str, Any] = {}
    if plan.repo is not None:
        make_repo(plan.repo, private=private)  # before minutes are spent on what a token then may not upload
    write_card(plan.run, plan.number)
    with on_this_machine(plan.folder) as local:
        if plan.run.config.train.lora is not None:
            console.print("Comparing the adapter with the merged weights ...")
            found = _parity(plan, local)
            told["parity"] = asdict(found)
            console.print(f"  logits differ by {found.difference:.1e} of the largest (at most {found.tolerance:.0e})")
        if plan.repo is None:
            copy(local, Folder(plan.to))
            told["address"] = Folder(plan.to).uri
        else:
            message = f"m{plan.number} of jsfree, fingerprint {plan.run.config.own_fingerprint}"
            told["address"] = upload(local, plan.repo, message)
    console.print(f"Published: {told['address']}", soft_wrap=True)
    return told


def _parity(plan: Publication, local: Path) -> Parity:
    from jsfree.publishing.parity import parity, require_parity

    config = plan.run.config
    first = plan.number == 1
    base = config.captioner.versioned_ref if first else plan.run.stage(plan.number - 1, "model").uri
    found = parity(base, local, config.captioner, config.prompt, config.models)
    require_parity(found, plan.folder.uri)
    return found


def _print(plan: Publication, console: Console) -> None:
    console.print(f"m{plan.number}: {plan.folder.uri} -> {plan.to}", soft_wrap=True)
    for name, size in plan.files.items():
        console.print(f"  {size:>15,}  {name}", soft_wrap=True)
    console.print(f"  {sum(plan.files.values()):>15,}  bytes in {len(plan.files)} files")
    for each in plan.missing:
        console.print(Text.assemble(("missing:", "bold red"), f" {each}"), soft_wrap=True)
