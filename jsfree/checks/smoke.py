"""Checks of a finished run: does every part of the loop do its job?

    jsfree run --config configs/llava-1.5-7b-smoke.yaml --set source.path=/data/images --smoke

``examine(run, reloaded)`` reads the run's folder. The checks that need a model take their measurements from
``reload``, which runs where a GPU may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from statistics import fmean

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.checks.findings import Finding, Verdict, from_error
from jsfree.config import RunConfig
from jsfree.dpo.loop import initial_loss_tolerance
from jsfree.dpo.loss import initial_loss
from jsfree.dpo.trained import trained_names
from jsfree.errors import JsfreeError, StageError
from jsfree.evaluation.rounds_stop import last_round
from jsfree.evaluation.statistics import mean_interval
from jsfree.models.loading import load_captioner
from jsfree.run.folder import Folder, shard_name
from jsfree.run.run import Run
from jsfree.run.stages import manifests_of_round
from jsfree.run.streaming import scan
from jsfree.schemas import Sample
from jsfree.stages.captioning import CaptionWriter

AREA = "smoke"
MIN_PAIRS = 20  # with fewer, a bootstrap's interval is no 95 % interval
MIN_STEPS = 4
LAST_STEPS = 0.25
"""Share of the optimizer steps over which the end of training is averaged."""
MIN_EQUAL_CAPTIONS = {"float32": 1.0, "bfloat16": 0.9}
"""Share of captions that must be reproduced; bfloat16 rounds differently on another GPU."""
MIN_CHANGED_TENSORS = {"float32": 0.95, "bfloat16": 0.5}
"""Share of the trained tensors that must change; bfloat16 cannot represent a small change of a weight near 1."""


@dataclass(frozen=True)
class Reloaded:
    """Measurements of a round's published model after loading it again.

    ``texts`` are its captions by ``sample_id`` in evaluation mode ``mode``. Compared with the model before training,
    ``changed`` of the ``trained`` tensors differ, and ``touched`` of the ``frozen`` ones, which must be 0.
    """

    mode: str
    texts: Mapping[str, str]
    trained: int
    changed: int
    frozen: int
    touched: int


Reloads = Mapping[int, Reloaded | JsfreeError]
Result = tuple[bool, str]
"""Whether a check passed, and what was found."""


@dataclass(frozen=True)
class SmokeCheck:
    """A named check of one round, with the remedy if it fails."""

    name: str
    examine: Callable[[Run, int, Reloads], Result]
    remedy: str


def examine(run: Run, reloaded: Reloads) -> list[Finding]:
    """Run all checks of all rounds, and the check of the report.

    Args:
        reloaded: the measurements of each round's model, or the error raised by ``reload``.
    """
    rounds = last_round(run)
    findings = [
        _examined(check, run, number, reloaded, f"round {number}: " if rounds > 1 else "")
        for number in range(1, rounds + 1)
        for check in CHECKS
    ]
    return [*findings, _examined(REPORT, run, 0, reloaded, "")]


def reload(config: RunConfig, before: str, after: str, samples: Sequence[Sample], name: str, device: str) -> Reloaded:
    """Load a round's published model, caption ``samples``, and compare its weights with those before training.

    Args:
        before: reference of the model that the round started from.
        after: reference of the published model.
        samples: a whole shard of the evaluation, in order, so that batches equal those of the stored captions.
        name: the model's name, such as ``m1``.

    Raises:
        ModelError: a model cannot be loaded.
    """
    mode = replayed_mode(config)
    writer = CaptionWriter(config, after, name, mode, device)
    texts = {row["sample_id"]: row["text"] for row in writer(samples).rows}
    settings = config.captioner
    old = load_captioner(before, "cpu", settings.dtype, settings.preprocessing, files=config.models).model
    weights = writer.captioner.model.state_dict()
    trained = trained_names(weights, writer.captioner.family, config.train.trained_layers, config.train.lora)
    differs = {key for key, tensor in old.state_dict().items() if not torch.equal(tensor, weights[key].cpu())}
    frozen = weights.keys() - trained
    return Reloaded(mode, texts, len(trained), len(differs & trained), len(frozen), len(differs & frozen))


def replayed_mode(config: RunConfig) -> str:
    """The evaluation mode in which captions are repeated: a greedy one if there is one."""
    modes = config.evaluate.modes
    return next((name for name, decoding in modes.items() if decoding.temperature == 0), next(iter(modes)))


def _examined(check: SmokeCheck, run: Run, number: int, reloaded: Reloads, prefix: str) -> Finding:
    name = prefix + check.name
    try:
        passed, found = check.examine(run, number, reloaded)
    except JsfreeError as error:  # a part of the run is missing or damaged
        return from_error(AREA, name, error, check.remedy)
    return Finding(AREA, name, Verdict.OK if passed else Verdict.FAILS, found, check.remedy)


def _stages(run: Run, number: int, _: Reloads) -> Result:
    names = manifests_of_round(number, run.config.evaluate.modes)
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
    return True, f"{len(done)} stages finished; {failed} rows failed (limit: {limit:.1%} of a stage's rows)"


def _captions(run: Run, number: int, _: Reloads) -> Result:
    captions = empty = words = 0
    for text in _texts(run, number):
        captions += 1
        empty += not text.strip()
        words += len(text.split())
    if not captions:
        return False, "there are no captions"
    passed = empty <= run.config.max_failed_fraction * captions
    return passed, f"{empty} of {captions} captions are empty; {words / captions:.0f} words per caption"


def _texts(run: Run, number: int) -> Iterator[str]:
    """All captions of a round."""
    for table in scan(run.stage(number, "pairs"), schemas.PAIRS, ["low.text", "high.text"]):
        for role in (schemas.LOW, schemas.HIGH):
            yield from pc.struct_field(table[role], "text").to_pylist()
    for name in manifests_of_round(number, run.config.evaluate.modes):
        if name.startswith("captions/"):
            for table in scan(run.stage(number, name), schemas.CAPTIONS, ["text"]):
                yield from table["text"].to_pylist()


def _hallucination(run: Run, number: int, _: Reloads) -> Result:
    if run.config.imported is not None:
        return True, "the pairs are imported: their ratios are unknown"
    differences = 100 * _score_differences(run.stage(number, "scored"))
    if len(differences) < MIN_PAIRS:
        return False, f"{len(differences)} pairs; at least {MIN_PAIRS} are needed for an interval (source.count)"
    interval = mean_interval(differences)
    text = (
        f"CLIP score x100 of the caption with the higher h: {interval.value:+.2f}"
        f" (95 %: {interval.low:+.2f} to {interval.high:+.2f}), {len(differences)} pairs"
    )
    if interval.high < 0:
        return True, text
    if interval.value < 0:
        return False, f"{text}; about {_required_pairs(differences)} pairs would be significant"
    return False, text


def _score_differences(scored: Folder) -> NDArray[np.float64]:
    """Score at the higher ratio minus score at the lower one, of all pairs whose ratios differ."""
    parts = [np.empty(0)]
    for table in scan(scored, schemas.SCORED, ["low.ratio", "low.score", "high.ratio", "high.score"]):
        ratios, scores = (
            [pc.struct_field(table[role], name).to_numpy() for role in (schemas.LOW, schemas.HIGH)]
            for name in ("ratio", "score")
        )
        parts.append((scores[1] - scores[0])[ratios[1] > ratios[0]])
    return np.concatenate(parts)


def _required_pairs(differences: NDArray[np.float64]) -> int:
    """Number of pairs with which a difference of this size is significant with power 80 % (two-sided 5 %)."""
    return math.ceil(((1.96 + 0.84) * float(differences.std()) / float(differences.mean())) ** 2)


def _gap(run: Run, number: int, _: Reloads) -> Result:
    tables = scan(run.stage(number, "selected"), schemas.SELECTED, ["gap"])
    gaps = np.concatenate([np.empty(0), *(table["gap"] for table in tables)])
    if not len(gaps):
        return False, "no pairs were selected"
    without = int((gaps <= 0).sum())
    found = f"{len(gaps)} pairs, gaps x100 of {100 * gaps.min():.2f} to {100 * gaps.max():.2f}"
    return without == 0, found + (f"; {without} have none" if without else "")


def _first_loss(run: Run, number: int, _: Reloads) -> Result:
    loss, expected = _steps(run, number)[0]["loss"], initial_loss(run.config.train.beta, run.config.train.loss)
    if number > 1 and run.config.train.reference == "seed":
        return True, f"{loss:.5f}; the reference is m0, so it need not be {expected:.5f}"
    tolerance = initial_loss_tolerance(run.config)
    return abs(loss - expected) <= tolerance, f"{loss:.5f}; expected {expected:.5f} ± {tolerance:g}"


def _margin(run: Run, number: int, _: Reloads) -> Result:
    return _rises(_steps(run, number), "margin")


def _chosen_reward(run: Run, number: int, _: Reloads) -> Result:
    return _rises(_steps(run, number), "chosen_reward")


def _rises(steps: Sequence[Mapping[str, float]], figure: str) -> Result:
    """Whether a figure that is 0 before training is positive over the last quarter of it."""
    if len(steps) < MIN_STEPS:
        return False, f"{len(steps)} steps; at least {MIN_STEPS} are needed (source.count, train.epochs)"
    last = steps[-math.ceil(LAST_STEPS * len(steps)) :]
    value, accuracy = (fmean(step[name] for step in last) for name in (figure, "accuracy"))
    which = "the last step" if len(last) == 1 else f"the last {len(last)} steps"
    return value > 0, f"0 -> {value:+.4f} in {which} of {len(steps)}; {accuracy:.0%} of their pairs in order"


def _steps(run: Run, number: int) -> list[dict[str, float]]:
    folder = run.stage(number, "train")
    steps: list[dict[str, float]] = folder.read_json("steps.json")
    if not steps:
        raise StageError(f"{folder.uri}/steps.json holds no steps")
    return steps


def _changed(run: Run, number: int, reloaded: Reloads) -> Result:
    model = _reloaded(reloaded, number)
    required = MIN_CHANGED_TENSORS[run.config.captioner.dtype] * model.trained
    passed = model.touched == 0 and model.changed >= required > 0
    return passed, (
        f"{model.changed} of {model.trained} trained tensors changed, {model.touched} of {model.frozen} frozen ones"
    )


def _reproduced(run: Run, number: int, reloaded: Reloads) -> Result:
    model = _reloaded(reloaded, number)
    stored = _first_shard(run.stage(number, f"captions/m{number}-{model.mode}"))
    equal = sum(model.texts.get(sample_id) == text for sample_id, text in stored.items())
    passed = bool(stored) and equal >= MIN_EQUAL_CAPTIONS[run.config.captioner.dtype] * len(stored)
    return passed, f"{equal} of {len(stored)} {model.mode} captions are reproduced"


def _first_shard(folder: Folder) -> dict[str, str]:
    table = folder.read_table(shard_name(0), schemas.CAPTIONS)
    return dict(zip(table["sample_id"].to_pylist(), table["text"].to_pylist(), strict=True))


def _reloaded(reloaded: Reloads, number: int) -> Reloaded:
    model = reloaded[number]
    if isinstance(model, JsfreeError):
        raise model
    return model


class _ExternalReferences(HTMLParser):
    """Collects scripts of a page, and addresses that are not inside the page."""

    ADDRESSES = frozenset({"src", "href", "xlink:href", "srcset", "data", "action", "poster"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed"):
            self.found.append(f"<{tag}>")
        self.found += [
            f"{name}={(value or '')[:60]}"
            for name, value in attrs
            if name in self.ADDRESSES and not (value or "").startswith(("data:", "#"))
        ]


def _report(run: Run, _: int, __: Reloads) -> Result:
    folder = run.folder / "report"
    html = folder.read("index.html").decode()
    external = _ExternalReferences(html).found
    if external:
        return False, f"{folder.uri}/index.html refers to {', '.join(external[:3])}"
    if not html.rstrip().endswith("</html>"):
        return False, f"{folder.uri}/index.html is cut off"
    return True, f"{len(html.encode()) / 1e6:.1f} MB in one file"


CHECKS = (
    SmokeCheck(
        "every stage finished",
        _stages,
        "run it again to continue where it stopped; failed rows and their reasons are in <run>/round-k/errors/",
    ),
    SmokeCheck(
        "captions are not empty",
        _captions,
        "captioner.ref must be a checkpoint with its own chat template; see generate.decoding",
    ),
    SmokeCheck(
        "h raises hallucination, by CLIP",
        _hallucination,
        "use more images; then compare the pairs in the report: if both captions are equally good, h has no effect"
        " (generate.ratios); if CLIP cannot tell them apart, use another CLIP model (clip.ref, clip.pretrained)",
    ),
    SmokeCheck("selected pairs have a gap", _gap, "leave out the lowest split: select.first: 2 or more"),
    SmokeCheck(
        "the loss starts at ln 2",
        _first_loss,
        "policy and reference disagree before training: run again with --restart train; if it persists, the forward"
        " pass is not deterministic on this GPU",
    ),
    SmokeCheck(
        "the margin rises",
        _margin,
        "train longer (train.epochs, source.count) or with a higher train.learning_rate",
    ),
    SmokeCheck(
        "the chosen reward rises",
        _chosen_reward,
        "if the margin rises nevertheless, training lowers the chosen caption along with the rejected one: raise"
        " train.sft_weight or lower train.learning_rate",
    ),
    SmokeCheck(
        "the model changed where it was trained",
        _changed,
        "too few changed: raise train.learning_rate or train longer; a frozen one changed: the model was not published"
        " from this training, run again with --restart train",
    ),
    SmokeCheck(
        "the model loads and captions as before",
        _reproduced,
        "the published model is not the one that was evaluated: run again with --restart train",
    ),
)
REPORT = SmokeCheck("the report is one whole page", _report, "write it again: jsfree report --run <run>")
