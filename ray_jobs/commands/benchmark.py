"""``jsfree benchmark``: the field's benchmarks for the models of a run, or for a file of answers."""

# No `from __future__ import annotations`: Typer reads these annotations when the command is registered.

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console

from jsfree.errors import ConfigError, SourceError, StorageError
from jsfree.evaluation.benchmarks.answers import read_answers
from jsfree.evaluation.benchmarks.base import Question, Suite
from jsfree.evaluation.benchmarks.data_paths import DataPath, data_path
from jsfree.evaluation.benchmarks.registry import BUILDERS, SuiteOptions, build
from jsfree.evaluation.benchmarks.results import Result
from jsfree.judge.settings import JudgeSettings
from ray_jobs.commands.benchmark_options import (
    ALL,
    SIMULATED,
    Answers,
    Beams,
    Budget,
    Categories,
    Data,
    Details,
    ExtractorName,
    Judges,
    Listing,
    MaxNewTokens,
    MeasuredRun,
    ModelRefs,
    NounStackName,
    Scoring,
    StackName,
    Suites,
    TrainedOn,
    Vectors,
    ViewCount,
    VocabularyFile,
)
from ray_jobs.commands.benchmark_tables import legend, requirements_table, results_table
from ray_jobs.commands.options import AsJson, Debug, Settings, set_log_level

T = TypeVar("T")


def benchmark(
    suites: Suites = None,
    run: MeasuredRun = None,
    models: ModelRefs = None,
    answers: Answers = None,
    data: Data = None,
    vocabulary: VocabularyFile = None,
    stack: StackName = "original",
    extractor: ExtractorName = "words",
    beams: Beams = 3,
    judges: Judges = None,
    budget: Budget = None,
    scoring: Scoring = "original",
    vectors: Vectors = None,
    nouns: NounStackName = "rule",
    categories: Categories = None,
    views: ViewCount = 1,
    max_new_tokens: MaxNewTokens = None,
    trained_on: TrainedOn = None,
    details: Details = None,
    settings: Settings = None,
    listing: Listing = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure hallucination with published benchmarks (suites), such as CHAIR, POPE and AMBER."""
    set_log_level(debug)
    from ray_jobs.commands.console import plain_or_live

    console = plain_or_live(stderr=as_json)
    if listing:
        named = _names(suites or [ALL])
        shown = None if data is None else data_path(data)
        console.print(requirements_table([build(name, SuiteOptions()) for name in named], shown))
        return
    folder = data_path(_required(data, "--data, the folder of the suites' files,"))
    if answers is not None and trained_on:
        raise ConfigError("--trained-on has no effect with --answers, which loads no model", "omit one of them")
    stopped = None
    with _judges(judges or [], folder) as asked:
        options = SuiteOptions(vocabulary, stack, extractor, beams, asked, budget, scoring, vectors, nouns, categories)
        built = [build(name, options) for name in _names(suites)]
        if answers is not None:
            results = {suite.name: {answers.stem: _score_file(suite, suite.folder(folder), answers)} for suite in built}
        else:
            from ray_jobs.commands.benchmark_models import find_models, measure_models

            measured = find_models(run, models or [], settings or [], trained_on or [])
            questions = _questions(built, folder, console, skips=suites == [ALL])
            results, stopped = measure_models(questions, folder, measured, views, max_new_tokens, console)
    built = [suite for suite in built if suite.name in results]
    if details is not None:
        _write_details(details, built, results)
    _print(built, results, console, as_json=as_json)
    if stopped is not None:
        raise stopped


@contextmanager
def _judges(named: Sequence[str], data: DataPath) -> Iterator[tuple[str | JudgeSettings, ...]]:
    """The judges with the simulated one in the place of its name; it is served until the context ends."""
    if SIMULATED not in named:
        yield tuple(named)
        return
    from jsfree.evaluation.benchmarks.miniworld_judge import miniworld_judge

    if not isinstance(data, Path):
        raise ConfigError(
            f"the simulated judge reads local folders only, not {data}",
            "copy the data, and name the folder with --data",
        )
    with miniworld_judge(data) as settings:
        yield tuple(settings if name == SIMULATED else name for name in named)


def _names(suites: Sequence[str] | None) -> list[str]:
    """The names of the suites that are asked for."""
    return list(BUILDERS) if suites == [ALL] else list(dict.fromkeys(_required(suites, "SUITE")))


def _questions(
    suites: Sequence[Suite], data: DataPath, console: Console, *, skips: bool
) -> list[tuple[Suite, Sequence[Question]]]:
    """The suites with their questions.

    Args:
        skips: leave out the suites whose files are missing or wrong, and say so.

    Raises:
        SourceError: files are missing or wrong, and ``skips`` is False or no suite is left.
    """
    if skips and not data.exists():
        raise SourceError(f"{data} does not exist", "correct --data")
    found: list[tuple[Suite, Sequence[Question]]] = []
    for suite in suites:
        own = suite.folder(data)
        try:
            if skips and suite.requires_own_folder and own is data:
                raise SourceError(f"{data} has no folder {' or '.join(suite.folders)}", "create it, or name the suite")
            found.append((suite, suite.questions(own)))
        except SourceError as error:
            if not skips:
                raise
            console.print(f"skipped: {suite.name}: {error}", highlight=False, markup=False, soft_wrap=True)
    if not found:
        raise SourceError(f"{data} does not have all files of any suite", "see jsfree benchmark --list --data FOLDER")
    return found


def _print(suites: Sequence[Suite], results: Mapping[str, Any], console: Console, *, as_json: bool) -> None:
    """Print results as one table, or without their details as JSON."""
    if as_json:
        typer.echo(json.dumps(_single(_without_details(results)), indent=2))
        return
    of_suites = [(suite, results[suite.name]) for suite in suites]
    console.print(legend(of_suites), soft_wrap=True, highlight=False)
    console.print(results_table(of_suites))
    for suite, of_suite in of_suites:
        for note in dict.fromkeys(note for result in of_suite.values() for note in result["notes"]):
            console.print(f"- {suite.title}: {note}", highlight=False, markup=False)


def _score_file(suite: Suite, data: DataPath, path: Path) -> dict[str, Any]:
    """Score a file of answers."""
    questions = suite.known_questions(data)
    answers = read_answers(path, questions)
    measured = suite.score(data, answers)
    return Result(suite, path.stem, answers, measured, {"file": str(path)}, len(questions) or len(answers)).as_json()


def _write_details(path: Path, suites: Sequence[Suite], results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what was found in each answer: one document if one suite and model were measured, else by their names.

    Raises:
        StorageError: the file cannot be written.
    """
    documents = {
        suite.name: {model: suite.details_document(result) for model, result in results[suite.name].items()}
        for suite in suites
    }
    try:
        path.write_text(json.dumps(_single(documents), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}", "name another file") from error


def _without_details(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        suite: {
            model: {key: value for key, value in result.items() if key != "details"}
            for model, result in of_suite.items()
        }
        for suite, of_suite in results.items()
    }


def _single(by_suite: Mapping[str, Mapping[str, Any]]) -> Any:
    """The only value of the only suite and model, or all of them by suite and model."""
    values = [value for by_model in by_suite.values() for value in by_model.values()]
    return values[0] if len(values) == 1 else by_suite


def _required(value: T | None, name: str) -> T:
    if not value:
        raise ConfigError(f"{name} is missing", "see jsfree benchmark --help")
    return value
