"""The checks that end a smoke run: does every part of the loop do what it is there for?

    jsfree run --config configs/llava-1.5-7b-smoke.yaml --set source.path=/data/images --smoke

``examine(run, reloaded)`` reads what a finished run left in its folder. What takes a model is measured by ``reload``,
which runs where a GPU may be, and handed in. Every check gives a finding, and a remedy for when it fails. Knows no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.config import RunConfig
from jsfree.dpo.loop import initial_loss_tolerance
from jsfree.dpo.loss import initial_loss
from jsfree.dpo.trained import trained_names
from jsfree.errors import JsfreeError, StageError
from jsfree.evaluation.statistics import mean_interval
from jsfree.models.loading import load_captioner
from jsfree.models.saving import hub_key
from jsfree.run.storage import Folder, Run, shard_name
from jsfree.run.streaming import scan
from jsfree.schemas import Sample
from jsfree.stages.captioning import CaptionWriter

FEWEST_PAIRS = 20  # below, a bootstrap's interval is no 95 % interval
FEWEST_STEPS = 4
LAST_STEPS = 0.25
# Share of captions that must come out again. bfloat16 on another GPU rounds otherwise, and a caption may then differ.
SAME_CAPTIONS = {"float32": 1.0, "bfloat16": 0.9}
# Tensors that training must have changed. bfloat16 cannot hold a small change of a weight near 1 (a norm's).
CHANGED_TENSORS = {"float32": 0.95, "bfloat16": 0.5}


@dataclass(frozen=True)
class Check:
    """A question to a run and its answer; the remedy is for when it failed."""

    name: str
    passed: bool
    finding: str
    remedy: str


@dataclass(frozen=True)
class Reloaded:
    """What a round's published model does when it is loaded again, and in how many tensors it differs from before.

    ``texts`` are its captions by ``sample_id`` in evaluation mode ``mode``. ``changed`` of the ``trained`` tensors
    differ; ``touched`` of the ``frozen`` ones do, which must be 0.
    """

    mode: str
    texts: Mapping[str, str]
    trained: int
    changed: int
    frozen: int
    touched: int


Reloads = Mapping[int, Reloaded | JsfreeError]
Finding = tuple[bool, str]


@dataclass(frozen=True)
class _Question:
    name: str
    answer: Callable[[Run, int, Reloads], Finding]
    remedy: str


def examine(run: Run, reloaded: Reloads) -> list[Check]:
    """All checks of all rounds, and of the report.

    Args:
        reloaded: what ``reload`` measured of each round's model, or the error that it raised.
    """
    rounds = run.config.rounds
    checks = [
        _checked(question, run, number, reloaded, f"round {number}: " if rounds > 1 else "")
        for number in range(1, rounds + 1)
        for question in QUESTIONS
    ]
    return [*checks, _checked(REPORT, run, 0, reloaded, "")]


def reload(config: RunConfig, before: str, after: str, samples: Sequence[Sample], name: str, device: str) -> Reloaded:
    """Load a round's model as its users will, caption ``samples``, and compare its weights with those of before.

    Args:
        before: reference of the model that the round started from.
        after: reference of the published model.
        samples: a whole shard of the evaluation, in its order, so that batches are those of the stored captions.
        name: the model's name, such as ``m1``.

    Raises:
        ModelError: a model cannot be loaded.
    """
    mode = replayed_mode(config)
    writer = CaptionWriter(config, after, name, mode, device)
    texts = {row["sample_id"]: row["text"] for row in writer(samples).rows}
    settings = config.captioner
    old = load_captioner(before, "cpu", settings.dtype, settings.preprocessing, files=config.models).model
    weights = {hub_key(key): tensor for key, tensor in writer.captioner.model.state_dict().items()}
    trained = trained_names(weights, config.train.trained_layers, config.train.lora)
    differs = {
        hub_key(key) for key, tensor in old.state_dict().items() if not torch.equal(tensor, weights[hub_key(key)].cpu())
    }
    frozen = weights.keys() - trained
    return Reloaded(mode, texts, len(trained), len(differs & trained), len(frozen), len(differs & frozen))


def replayed_mode(config: RunConfig) -> str:
    """The evaluation mode in which captions are made again: a greedy one, if there is one."""
    modes = config.evaluate.modes
    return next((name for name, decoding in modes.items() if decoding.temperature == 0), next(iter(modes)))


def _checked(question: _Question, run: Run, number: int, reloaded: Reloads, prefix: str) -> Check:
    try:
        passed, finding = question.answer(run, number, reloaded)
    except JsfreeError as error:  # a part of the run is missing or damaged: the finding says which
        passed, finding = False, str(error)
    return Check(prefix + question.name, passed, finding, question.remedy)


def _stages(run: Run, number: int, _: Reloads) -> Finding:
    names = expected_stages(run.config, number)
    manifests = {name: run.manifest(number, name) for name in names}
    missing = [name for name, manifest in manifests.items() if manifest is None]
    if missing:
        return False, f"no manifest of {', '.join(missing)}"
    done = {name: manifest for name, manifest in manifests.items() if manifest is not None}
    empty = [name for name, manifest in done.items() if manifest.rows_out == 0]
    if empty:
        return False, f"no rows came out of {', '.join(empty)}"
    limit = run.config.max_failed_fraction
    bad = [
        f"{name} ({manifest.rows_failed} of {manifest.rows_in})"
        for name, manifest in done.items()
        if manifest.rows_failed > limit * manifest.rows_in
    ]
    if bad:
        return False, f"more than {limit:.1%} of the rows failed in {', '.join(bad)}"
    failed = sum(manifest.rows_failed for manifest in done.values())
    return True, f"{len(done)} stages finished; {failed} rows failed (at most {limit:.1%} of a stage's may)"


def expected_stages(config: RunConfig, number: int) -> list[str]:
    """The stages that round ``number`` leaves a manifest of; m0 is captioned in the first round, for all."""
    models = [f"m{number}"] if number > 1 else ["m0", "m1"]
    captions = [
        f"{stage}/{model}-{mode}"
        for stage in ("captions", "captions_scored")
        for model in models
        for mode in config.evaluate.modes
    ]
    return ["samples", "pairs", "scored", "selected", "train", *(["evaluation"] if number == 1 else []), *captions]


def _captions(run: Run, number: int, _: Reloads) -> Finding:
    captions = empty = words = 0
    for text in _texts(run, number):
        captions += 1
        empty += not text.strip()
        words += len(text.split())
    if not captions:
        return False, "there are no captions"
    passed = empty <= run.config.max_failed_fraction * captions
    return passed, f"{empty} of {captions} captions are empty; {words / captions:.0f} words a caption"


def _texts(run: Run, number: int) -> Iterator[str]:
    """All captions of a round."""
    for table in scan(run.stage(number, "pairs"), schemas.PAIRS, ["low.text", "high.text"]):
        for role in (schemas.LOW, schemas.HIGH):
            yield from pc.struct_field(table[role], "text").to_pylist()
    for name in expected_stages(run.config, number):
        if name.startswith("captions/"):
            for table in scan(run.stage(number, name), schemas.CAPTIONS, ["text"]):
                yield from table["text"].to_pylist()


def _hallucination(run: Run, number: int, _: Reloads) -> Finding:
    if run.config.imported is not None:
        return True, "the pairs are imported: nobody knows their ratios"
    differences = 100 * _differences(run.stage(number, "scored"))
    if len(differences) < FEWEST_PAIRS:
        return False, f"{len(differences)} pairs; at least {FEWEST_PAIRS} are needed to tell (source.count)"
    found = mean_interval(differences)
    text = (
        f"CLIP score x100 of the caption with the higher h: {found.value:+.2f}"
        f" (95 %: {found.low:+.2f} to {found.high:+.2f}), {len(differences)} pairs"
    )
    if found.high < 0:
        return True, text
    if found.value < 0:
        return False, f"{text}; about {_pairs_needed(differences)} pairs would tell"
    return False, text


def _differences(scored: Folder) -> NDArray[np.float64]:
    """Score of the caption with the higher ratio less that of the other, of all pairs whose ratios differ."""
    found = [np.empty(0)]
    for table in scan(scored, schemas.SCORED, ["low.ratio", "low.score", "high.ratio", "high.score"]):
        ratios, scores = (
            [pc.struct_field(table[role], name).to_numpy() for role in (schemas.LOW, schemas.HIGH)]
            for name in ("ratio", "score")
        )
        found.append((scores[1] - scores[0])[ratios[1] > ratios[0]])
    return np.concatenate(found)


def _pairs_needed(differences: np.ndarray[Any, Any]) -> int:
    """Pairs with which a difference as large as this is seen in 80 of 100 runs (two-sided 5 %)."""
    return math.ceil(((1.96 + 0.84) * float(differences.std()) / float(differences.mean())) ** 2)


def _gap(run: Run, number: int, _: Reloads) -> Finding:
    gaps = np.concatenate(
        [np.empty(0), *(table["gap"] for table in scan(run.stage(number, "selected"), schemas.SELECTED, ["gap"]))]
    )
    if not len(gaps):
        return False, "no pairs were selected"
    without = int((gaps <= 0).sum())
    return without == 0, f"{len(gaps)} pairs, gaps x100 of {100 * gaps.min():.2f} to {100 * gaps.max():.2f}" + (
        f"; {without} have none" if without else ""
    )


def _first_loss(run: Run, number: int, _: Reloads) -> Finding:
    loss, expected = _steps(run, number)[0]["loss"], initial_loss(run.config.train.beta, run.config.train.loss)
    if number > 1 and run.config.train.reference == "seed":
        return True, f"{loss:.5f}; the reference is m0, so it need not be {expected:.5f}"
    tolerance = initial_loss_tolerance(run.config)
    return abs(loss - expected) <= tolerance, f"{loss:.5f}; expected {expected:.5f}, give or take {tolerance:g}"


def _margin(run: Run, number: int, _: Reloads) -> Finding:
    return _rises(_steps(run, number), "margin")


def _chosen_reward(run: Run, number: int, _: Reloads) -> Finding:
    return _rises(_steps(run, number), "chosen_reward")


def _rises(steps: Sequence[Mapping[str, float]], figure: str) -> Finding:
    """Whether a figure that is 0 before training is above 0 in the last quarter of it."""
    if len(steps) < FEWEST_STEPS:
        return False, f"{len(steps)} steps; at least {FEWEST_STEPS} are needed to tell (source.count, train.epochs)"
    last = steps[-math.ceil(LAST_STEPS * len(steps)) :]
    value, accuracy = (fmean(step[name] for step in last) for name in (figure, "accuracy"))
    which = "the last step" if len(last) == 1 else f"the last {len(last)} steps"
    return value > 0, f"0 -> {value:+.4f} in {which} of {len(steps)}; {accuracy:.0%} of their pairs in order"


def _steps(run: Run, number: int) -> list[dict[str, float]]:
    steps: list[dict[str, float]] = run.stage(number, "train").read_json("steps.json")
    if not steps:
        raise StageError(f"{run.stage(number, 'train').uri}/steps.json holds no steps")
    return steps


def _differs(run: Run, number: int, reloaded: Reloads) -> Finding:
    found = _of(reloaded, number)
    passed = found.touched == 0 and found.changed >= CHANGED_TENSORS[run.config.captioner.dtype] * found.trained > 0
    return passed, (
        f"{found.changed} of {found.trained} trained tensors changed, {found.touched} of {found.frozen} frozen ones"
    )


def _repeats(run: Run, number: int, reloaded: Reloads) -> Finding:
    found = _of(reloaded, number)
    folder = run.stage(number, f"captions/m{number}-{found.mode}")
    stored = _first_shard(folder)
    same = sum(found.texts.get(sample_id) == text for sample_id, text in stored.items())
    passed = bool(stored) and same >= SAME_CAPTIONS[run.config.captioner.dtype] * len(stored)
    return passed, f"{same} of {len(stored)} {found.mode} captions come out again"


def _first_shard(folder: Folder) -> dict[str, str]:
    table = folder.read_table(shard_name(0), schemas.CAPTIONS)
    return dict(zip(table["sample_id"].to_pylist(), table["text"].to_pylist(), strict=True))


def _of(reloaded: Reloads, number: int) -> Reloaded:
    found = reloaded[number]
    if isinstance(found, JsfreeError):
        raise found
    return found


class _Links(HTMLParser):
    """Collects what a page would fetch: scripts, and addresses that are not in the page itself."""

    ADDRESSES = frozenset({"src", "href", "xlink:href", "srcset", "data", "action", "poster"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed"):
            self.outside.append(f"<{tag}>")
        self.outside += [
            f"{name}={(value or '')[:60]}"
            for name, value in attrs
            if name in self.ADDRESSES and not (value or "").startswith(("data:", "#"))
        ]


def _report(run: Run, _: int, __: Reloads) -> Finding:
    folder = run.folder / "report"
    html = folder.read("index.html").decode()
    outside = _Links(html).outside
    if outside:
        return False, f"{folder.uri}/index.html asks for {', '.join(outside[:3])}"
    if not html.rstrip().endswith("</html>"):
        return False, f"{folder.uri}/index.html does not end"
    return True, f"{len(html.encode()) / 1e6:.1f} MB in one file"


QUESTIONS = (
    _Question(
        "every stage finished",
        _stages,
        "run it again to go on where it stopped; failed rows and their reasons are in <run>/round-k/errors/",
    ),
    _Question(
        "captions are not empty",
        _captions,
        "captioner.ref must be a LLaVA-1.5 checkpoint with its own chat template; see generate.decoding",
    ),
    _Question(
        "h raises hallucination, by CLIP",
        _hallucination,
        "take more images; then look at the pairs in the report: if both captions are equally good, h has no effect"
        " (generate.ratios), if CLIP cannot tell them apart, the CLIP model does not fit (clip.ref, clip.pretrained)",
    ),
    _Question("selected pairs have a gap", _gap, "leave out the lowest split: select.first: 2 or more"),
    _Question(
        "the loss starts at ln 2",
        _first_loss,
        "policy and reference disagree before training: do it again with --restart train; if it stays, the forward"
        " pass is not deterministic on this GPU",
    ),
    _Question(
        "the margin rises",
        _margin,
        "train longer (train.epochs, source.count) or with a higher train.learning_rate",
    ),
    _Question(
        "the chosen reward rises",
        _chosen_reward,
        "where the margin rises all the same, training lowers the rejected caption and the chosen one with it: raise"
        " train.sft_weight or lower train.learning_rate",
    ),
    _Question(
        "the model changed where it was trained",
        _differs,
        "too few changed: raise train.learning_rate or train longer; a frozen one changed: the model was not published"
        " from this training, do it again with --restart train",
    ),
    _Question(
        "the model loads and captions as before",
        _repeats,
        "the published model is not the one that was evaluated: do it again with --restart train",
    ),
)
REPORT = _Question("the report is one whole page", _report, "write it again: jsfree report --run <run>")
