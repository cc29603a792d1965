"""Answers of a run's models to a benchmark's questions, by the stage classes of evaluation.

    <run>/evaluation/run.json  config.yaml
    <run>/evaluation/questions/<key>/        the questions, as samples
    <run>/evaluation/<model>/<key>/          the answers; <key> is the suite and a hash of questions and decoding
    <run>/evaluation/<model>/<suite>.json    the result

The folder is one of a run by itself, with its own lease, so finished shards are never made again and a killed command
resumes. Another model, decoding or set of questions has another key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from jsfree import schemas
from jsfree.config import Mode, RunConfig, Views
from jsfree.errors import ConfigError
from jsfree.evaluation.benchmarks.base import Answer, Generation, Question, prompts_hash
from jsfree.evaluation.rounds_stop import good_rounds
from jsfree.models.loading import look_up_models
from jsfree.run.folder import Folder
from jsfree.run.lease import Lease
from jsfree.run.record import recorded
from jsfree.run.run import Manifest, Run
from jsfree.run.streaming import scan
from jsfree.schemas import Sample
from jsfree.stages.beam_captioning import BeamCaptionWriter
from jsfree.stages.captioning import CaptionWriter
from jsfree.stages.text_answers import TextAnswerWriter, TextLikelihoodScorer
from ray_jobs.cluster.session import Cluster
from ray_jobs.commands.console import Reporter
from ray_jobs.rounds import Model, Round
from ray_jobs.shards.actor import ShardedStage
from ray_jobs.signals import exit_on_sigterm
from ray_jobs.stages.evaluate import decoding_key
from ray_jobs.stages.generate import shards_in_flight, write_samples

EVALUATION = "evaluation"
ANSWER_COLUMNS = ("sample_id", "image.id", "image.sha256", "text", "finish")


class EvaluationRun(Run):
    """The folder ``evaluation`` of a run, whose stages are in the folder itself instead of in rounds."""

    def round(self, number: int) -> Folder:  # noqa: ARG002
        """The folder of all benchmarks."""
        return self.folder


@dataclass(frozen=True)
class Answers:
    """The answers of one model to one suite's questions."""

    model: str
    answers: list[Answer]
    failed: int
    generation: Mapping[str, Any]


@contextmanager
def answering_session(config: RunConfig, models: Sequence[Model], reporter: Reporter) -> Iterator[Round]:
    """Hold the lease of the evaluation folder of a run; Ray starts when answers are missing.

    Args:
        config: the run's configuration; its models are looked up first.

    Raises:
        LeaseError: another command evaluates the run.
        ModelError: a model is missing.
    """
    files = config.models
    for model in models:
        files = look_up_models(model.ref, (), files)
    config = config.model_copy(update={"run": f"{Folder(config.run).uri}/{EVALUATION}", "models": files, "reuse": ()})
    run = EvaluationRun.open(config)
    assert isinstance(run, EvaluationRun)
    with exit_on_sigterm(), Lease(run.folder) as lease, recorded(run, lease), Cluster(config) as cluster:
        yield Round(run, 1, models[0], models[0], cluster, reporter)


def models_of(run: Run, seed: Model) -> list[Model]:
    """m0 and the models of the finished rounds of a run, in order."""
    done = [number for number in run.rounds() if run.manifest(number, "train") is not None]
    models = [seed]
    for number in good_rounds(run, done):
        manifest = run.manifest(number, "train")
        assert manifest is not None
        models.append(Model(f"m{number}", run.stage(number, "model").uri, manifest.fingerprint))
    return models


def answer_questions(
    current: Round,
    suite: str,
    questions: Sequence[Question],
    generation: Generation,
    views: int,
    models: Sequence[Model],
) -> list[Answers]:
    """The answers of models to the questions of a suite, in the order of the questions.

    Args:
        views: views of each image that decoding averages; only with one beam.

    Raises:
        ConfigError: beams and views are combined.
        StageError: a stage failed; finished answers are kept.
    """
    if generation.beams > 1 and views > 1:
        raise ConfigError(
            f"{suite}: {generation.beams} beams cannot be combined with {views} views", "use --beams 1 or --views 1"
        )
    mode = Mode(temperature=generation.temperature, max_new_tokens=generation.max_new_tokens, views=Views(count=views))
    config = _with_mode(current.config, suite, mode)
    decoding = f"{decoding_key(mode)} beams={generation.beams}"
    digest = _digest(questions)
    key = f"{suite}-{hashlib.sha256(f'{digest} {decoding}'.encode()).hexdigest()[:8]}"
    samples = current.complete(
        f"questions/{key}", current.fingerprint(digest), lambda: _write_questions(current, key, questions)
    )
    stages = [_stage(current, config, key, suite, model, samples, decoding, generation) for model in models]
    manifests = current.complete_sharded("answers", stages)
    described = _describe(generation, views, questions)
    logps = _likelihoods(current, models, stages) if generation.without_image else {}
    return [
        Answers(
            model.name,
            _read(current, stage.name, questions, logps.get(model.name)),
            manifests[stage.name].rows_failed,
            described,
        )
        for model, stage in zip(models, stages, strict=True)
    ]


def _stage(
    current: Round,
    config: RunConfig,
    key: str,
    suite: str,
    model: Model,
    samples: Manifest,
    decoding: str,
    generation: Generation,
) -> ShardedStage:
    name = f"{model.name}/{key}"
    arguments: dict[str, Any] = {"config": config, "model_ref": model.ref, "model": model.name, "mode": suite}
    stage = ShardedStage(
        name=name,
        fingerprint=current.fingerprint(
            samples.fingerprint, model.fingerprint, config.fingerprint("seed", "captioner"), decoding
        ),
        source=current.stage(f"questions/{key}").uri,
        source_schema=schemas.SAMPLES,
        target=current.table(name, schemas.CAPTIONS),
        stage_class=CaptionWriter,
        arguments=arguments,
        resources=config.generate.resources,
        attempts=current.attempts(name),
        shards_in_flight=shards_in_flight(config),
    )
    if generation.without_image:
        return replace(stage, stage_class=TextAnswerWriter, shards_in_flight=1)
    if generation.beams > 1:
        arguments["beams"] = generation.beams
        return replace(stage, stage_class=BeamCaptionWriter, shards_in_flight=1)
    return stage


def _likelihoods(
    current: Round, models: Sequence[Model], answers: Sequence[ShardedStage]
) -> dict[str, dict[str, list[float]]]:
    """Log-probabilities of the tokens of the first model's answers, by model and question."""
    seed = answers[0]
    stages = {
        model.name: replace(
            seed,
            name=(name := f"{stage.name}-likelihoods"),
            fingerprint=current.fingerprint(seed.fingerprint, model.fingerprint),
            source=seed.target.uri,
            source_schema=schemas.CAPTIONS,
            target=current.table(name, schemas.LIKELIHOODS),
            stage_class=TextLikelihoodScorer,
            arguments={"config": seed.arguments["config"], "model_ref": model.ref},
            attempts=current.attempts(name),
        )
        for model, stage in zip(models, answers, strict=True)
    }
    current.complete_sharded("likelihoods", list(stages.values()))
    return {
        model: {
            row["sample_id"]: row["logps"][0]
            for table in scan(current.stage(stage.name), schemas.LIKELIHOODS)
            for row in table.to_pylist()
        }
        for model, stage in stages.items()
    }


def _with_mode(config: RunConfig, name: str, mode: Mode) -> RunConfig:
    evaluate = config.evaluate.model_copy(update={"modes": {name: mode}})
    return config.model_copy(update={"evaluate": evaluate})


def _describe(generation: Generation, views: int, questions: Sequence[Question]) -> dict[str, Any]:
    """How the answers were made, for result files."""
    return {
        "by": "transformers generate" if generation.beams > 1 or generation.without_image else "jsfree engine",
        "temperature": generation.temperature,
        "beams": generation.beams,
        "views": views,
        "max_new_tokens": generation.max_new_tokens,
        "prompts_hash": prompts_hash([question.prompt for question in questions]),
    }


def _write_questions(current: Round, key: str, questions: Sequence[Question]) -> Manifest:
    samples: list[Sample] = [
        {"sample_id": question.question_id, "image": question.image, "prompt": question.prompt}
        for question in questions
    ]
    return write_samples(samples, current.stage(f"questions/{key}"), current.config.shard_rows)


def _digest(questions: Sequence[Question]) -> str:
    digest = hashlib.sha256()
    for question in questions:
        image = question.image
        content = image["uri"] or hashlib.sha256(image["bytes"] or b"").hexdigest()
        digest.update("\0".join((question.question_id, image["id"], content, question.prompt, "")).encode())
    return digest.hexdigest()[:16]


def _read(
    current: Round, name: str, questions: Sequence[Question], logps: Mapping[str, list[float]] | None
) -> list[Answer]:
    """The answers of a finished stage, in the order of the questions; failed ones are missing.

    Args:
        logps: log-probabilities by question, which become a part of the answers.
    """
    found = {
        row["sample_id"]: Answer(
            row["sample_id"],
            row["image"]["id"],
            row["text"],
            {"finish": row["finish"], "sha256": row["image"]["sha256"]}
            | ({} if logps is None else {"logps": logps.get(row["sample_id"], ())}),
        )
        for table in scan(current.stage(name), schemas.CAPTIONS, ANSWER_COLUMNS)
        for row in table.to_pylist()
    }
    return [found[question.question_id] for question in questions if question.question_id in found]
