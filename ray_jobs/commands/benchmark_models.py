"""Lets models answer the questions of benchmarks, and writes the results: the part of ``jsfree benchmark`` that loads
models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from jsfree import config as configuration
from jsfree.checks.findings import Verdict
from jsfree.checks.judge import check_judge
from jsfree.errors import ConfigError, JsfreeError, JudgeError, StageError
from jsfree.evaluation.benchmarks.base import Answer, Question, Suite
from jsfree.evaluation.benchmarks.contamination import Contamination, TrainedImages, keys_of
from jsfree.evaluation.benchmarks.data_paths import DataPath
from jsfree.evaluation.benchmarks.measuring import CountTable
from jsfree.evaluation.benchmarks.results import Result
from jsfree.run.folder import Folder
from jsfree.run.run import CONFIG, Run
from ray_jobs.commands.benchmark_options import DEFAULT_RUN
from ray_jobs.commands.console import Reporter
from ray_jobs.pipeline import seed_model
from ray_jobs.rounds import Model, Round
from ray_jobs.stages.answering import answer_questions, answering_session, models_of


@dataclass(frozen=True)
class Models:
    """The models to measure, the seed first, and a configuration.

    ``trained`` has the images that the rounds of their run trained on, and those listed with ``--trained-on``.
    """

    config: configuration.RunConfig
    models: list[Model]
    trained: TrainedImages


def measure_models(
    asked: Sequence[tuple[Suite, Sequence[Question]]],
    data: DataPath,
    measured: Models,
    views: int,
    max_new_tokens: int | None,
    console: Console,
) -> tuple[dict[str, dict[str, Any]], JsfreeError | None]:
    """Let models answer the questions of suites, and write and return the results by suite and model.

    The other suites are still measured if a judge stops or no answer can be scored; the first error is returned.
    """
    report_on_judges([suite for suite, _ in asked], console)
    results: dict[str, dict[str, Any]] = {}
    stopped: JsfreeError | None = None
    with answering_session(measured.config, measured.models, Reporter(console)) as current:
        for suite, questions in asked:
            try:
                results[suite.name] = _measure(
                    current, suite, questions, suite.folder(data), measured, views, max_new_tokens
                )
            except (JudgeError, StageError) as error:
                stopped = stopped or error
    return results, stopped


def _measure(
    current: Round,
    suite: Suite,
    questions: Sequence[Question],
    folder: DataPath,
    measured: Models,
    views: int,
    max_new_tokens: int | None,
) -> dict[str, Any]:
    """Results of a suite by model."""
    generation = replace(suite.generation, max_new_tokens=max_new_tokens or suite.generation.max_new_tokens)
    tables: dict[str, CountTable] = {}
    results: dict[str, Any] = {}
    for each in answer_questions(current, suite.name, questions, generation, views, measured.models):
        answers = suite.as_answers(folder, each.answers)
        found = suite.score(folder, answers)
        if not found.rows:
            reason = f": {found.errors[0]['message']}" if found.errors else ""
            problem = f"{suite.title}: no answer of {each.model} could be scored{reason}"
            raise StageError(problem, "correct the cause, and run the command again")
        result = Result(
            suite,
            each.model,
            answers,
            found,
            each.generation,
            len(questions),
            each.failed,
            dict(tables),
            _contamination(suite, questions, answers, measured.trained),
        )
        tables[each.model] = CountTable.of(result.rows)
        results[each.model] = result.as_json()
        current.run.folder.write_json(f"{each.model}/{suite.name}.json", results[each.model])
    return results


def _contamination(
    suite: Suite, questions: Sequence[Question], answers: Sequence[Answer], trained: TrainedImages
) -> Contamination | None:
    if not (trained.rounds or trained.lists) or suite.generation.without_image:
        return None
    return trained.find(keys_of(suite, questions, answers))


def report_on_judges(suites: Sequence[Suite], console: Console) -> None:
    """Print what is wrong with the judges, or worth knowing, before captions are made for them.

    It does not stop the command: replies may be stored already.
    """
    for settings in dict.fromkeys(judge.settings for suite in suites for judge in suite.judges):
        for finding in check_judge(settings, datetime.now(UTC).date()):
            if finding.verdict is not Verdict.OK:
                text = f"{finding.verdict}: judge {finding.name}: {finding.found}"
                console.print(f"{text}; {finding.remedy}" if finding.remedy else text, highlight=False, markup=False)


def find_models(
    run: str | None, names: Sequence[str], settings: Sequence[str], trained_on: Sequence[str] = ()
) -> Models:
    """The models to measure.

    Args:
        trained_on: files with the names of images that they were trained on before.

    Raises:
        ConfigError: no model is named, or the run has no such model.
    """
    if run is not None and Folder(run).exists(CONFIG):
        found = _models_of_run(Run.existing(run), names, settings)
        return replace(found, trained=found.trained.with_lists(trained_on))
    if run is not None and not names:
        raise ConfigError(f"{run} holds no run (no {CONFIG})", "correct --run, or name models with --model")
    if not names:
        raise ConfigError("no model is named", "use --run, --model or --answers")
    folder = {"run": run or DEFAULT_RUN}
    configs = [configuration.load(None, settings, {**folder, "captioner.ref": name}) for name in names]
    seeds = [seed_model(config) for config in configs]
    models = [Model(f"m{number}", seed.ref, seed.fingerprint) for number, seed in enumerate(seeds)]
    return Models(configs[0], models, TrainedImages(0, frozenset(), frozenset()).with_lists(trained_on))


def _models_of_run(run: Run, names: Sequence[str], settings: Sequence[str]) -> Models:
    known = models_of(run, seed_model(run.config))
    unknown = set(names) - {model.name for model in known}
    if unknown:
        have = ", ".join(model.name for model in known)
        raise ConfigError(f"--model {min(unknown)}: {run.folder.uri} has {have}", "name some of them, or omit --run")
    config = configuration.with_overrides(run.config, settings)
    chosen = [model for model in known if not names or model is known[0] or model.name in names]
    return Models(config, chosen, TrainedImages.of_run(run))
