"""``jsfree benchmark``: the field's benchmarks for the models of a run, or for a file of answers."""

# No `from __future__ import annotations`: Typer reads these annotations when the command is registered.

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from jsfree import config as configuration
from jsfree.checks.findings import Verdict
from jsfree.checks.judge import check_judge
from jsfree.errors import ConfigError, StorageError
from jsfree.evaluation.benchmarks.answers import read_answers
from jsfree.evaluation.benchmarks.base import Suite
from jsfree.evaluation.benchmarks.measuring import CountTable
from jsfree.evaluation.benchmarks.registry import BUILDERS, SuiteOptions, build
from jsfree.evaluation.benchmarks.results import Result
from jsfree.run.folder import Folder
from jsfree.run.run import CONFIG, Run
from ray_jobs.commands.benchmark_tables import heading, requirements_table, results_table
from ray_jobs.commands.options import AsJson, Debug, Settings, set_log_level

if TYPE_CHECKING:
    from ray_jobs.rounds import Model

T = TypeVar("T")
DEFAULT_RUN = "runs/benchmark"
Answers = Annotated[
    Path | None, typer.Option("--answers", metavar="FILE", help="Score these answers; no model is loaded.")
]
Data = Annotated[Path | None, typer.Option("--data", metavar="FOLDER", help="Folder with the suites' files.")]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--judge", metavar="FILE", help="ic, mmhal: YAML settings of the judge; a second one shows how they agree."
    ),
]
Budget = Annotated[
    float | None, typer.Option("--budget", min=0, help="Maximum cost of a judge, in the currency of its price table.")
]
Scoring = Annotated[str, typer.Option("--scoring", help="pope: original, vcd, lmms-eval or vlmevalkit.")]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Limit of an answer. Default: the protocol's.")
]
Details = Annotated[Path | None, typer.Option("--details", metavar="FILE", help="Write what was found in each answer.")]
Vectors = Annotated[
    str | None,
    typer.Option("--vectors", metavar="NAME", help="amber: spaCy model or file of vectors. Default: no similarities."),
]


def benchmark(
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="SUITE...", help=f"Any of {', '.join(BUILDERS)}.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="PATH", help=f"Measure the models of this run. With --model: {DEFAULT_RUN}."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="REF", help="Hub id or folder of a model, in place of a run's. Can be repeated."
        ),
    ] = None,
    answers: Answers = None,
    data: Data = None,
    vocabulary: Annotated[
        str | None, typer.Option("--vocabulary", metavar="FILE", help="Object words. Default: the built-in ones.")
    ] = None,
    stack: Annotated[str, typer.Option("--stack", help="chair: original, lemmas or lmms-eval.")] = "original",
    extractor: Annotated[str, typer.Option("--extractor", help="halbench: words or objects.")] = "words",
    beams: Annotated[int, typer.Option("--beams", min=1, help="halbench: beams; 1 decodes by the engine.")] = 3,
    judges: Judges = None,
    budget: Budget = None,
    scoring: Scoring = "original",
    vectors: Vectors = None,
    views: Annotated[int, typer.Option("--views", min=1, help="Views of each image that decoding averages.")] = 1,
    max_new_tokens: MaxNewTokens = None,
    details: Details = None,
    settings: Settings = None,
    listing: Annotated[bool, typer.Option("--list", help="List what each suite needs, and what --data lacks.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure hallucination with the field's benchmarks."""
    set_log_level(debug)
    from ray_jobs.commands.console import plain_or_live

    console = plain_or_live(stderr=as_json)
    if listing:
        console.print(requirements_table([build(name, SuiteOptions()) for name in suites or BUILDERS], data))
        return
    options = SuiteOptions(vocabulary, stack, extractor, beams, tuple(judges or ()), budget, scoring, vectors)
    built = [build(name, options) for name in _required(suites, "SUITE")]
    folder = _required(data, "--data, the folder of the suites' files,")
    if answers is not None:
        results = {suite.name: {answers.stem: _score_file(suite, folder, answers)} for suite in built}
    else:
        results = _score_models(built, folder, run, models or [], views, max_new_tokens, settings or [], console)
    if details is not None:
        _write_details(details, built, results)
    _print(built, results, console, as_json=as_json)


def _print(suites: Sequence[Suite], results: Mapping[str, Any], console: Console, *, as_json: bool) -> None:
    """Print results as tables, or without their details as JSON."""
    if as_json:
        typer.echo(json.dumps(_single(_without_details(results)), indent=2))
        return
    for suite in suites:
        console.print(heading(suite, results[suite.name]), soft_wrap=True)
        console.print(results_table(suite, results[suite.name]))
        for note in dict.fromkeys(note for result in results[suite.name].values() for note in result["notes"]):
            console.print(f"- {note}", highlight=False, markup=False)


def _score_file(suite: Suite, data: Path, path: Path) -> dict[str, Any]:
    """Score a file of answers."""
    questions = suite.known_questions(data)
    answers = read_answers(path, questions)
    measured = suite.score(data, answers)
    return Result(suite, path.stem, answers, measured, {"file": str(path)}, len(questions) or len(answers)).as_json()


def _score_models(
    suites: Sequence[Suite],
    data: Path,
    run: str | None,
    refs: Sequence[str],
    views: int,
    max_new_tokens: int | None,
    settings: Sequence[str],
    console: Console,
) -> dict[str, dict[str, Any]]:
    """Let models answer each suite's questions, and write and return the results by suite and model."""
    from ray_jobs.commands.console import Reporter
    from ray_jobs.stages.answering import answer_questions, answering_session

    report_on_judges(suites, console)
    questions = {suite.name: suite.questions(data) for suite in suites}
    config, models = _models(run, refs, settings)
    results: dict[str, dict[str, Any]] = {}
    with answering_session(config, models, Reporter(console)) as current:
        for suite in suites:
            asked = questions[suite.name]
            generation = replace(suite.generation, max_new_tokens=max_new_tokens or suite.generation.max_new_tokens)
            answered = answer_questions(current, suite.name, asked, generation, views, models)
            tables: dict[str, CountTable] = {}
            results[suite.name] = {}
            for each in answered:
                measured = suite.score(data, each.answers)
                result = Result(
                    suite, each.model, each.answers, measured, each.generation, len(asked), each.failed, dict(tables)
                )
                tables[each.model] = CountTable.of(result.rows)
                results[suite.name][each.model] = result.as_json()
                current.run.folder.write_json(f"{each.model}/{suite.name}.json", results[suite.name][each.model])
    return results


def report_on_judges(suites: Sequence[Suite], console: Console) -> None:
    """Print what is wrong with the judges, or worth knowing, before captions are made for them.

    It does not stop the command: replies may be stored already.
    """
    for settings in dict.fromkeys(judge.settings for suite in suites for judge in suite.judges):
        for finding in check_judge(settings, datetime.now(UTC).date()):
            if finding.verdict is not Verdict.OK:
                text = f"{finding.verdict}: judge {finding.name}: {finding.found}"
                console.print(f"{text}; {finding.remedy}" if finding.remedy else text, highlight=False, markup=False)


def _models(
    run: str | None, names: Sequence[str], settings: Sequence[str]
) -> tuple[configuration.RunConfig, list["Model"]]:
    """The configuration, and the models to measure, the seed first.

    Raises:
        ConfigError: no model is named, or the run has no such model.
    """
    if run is not None and Folder(run).exists(CONFIG):
        return _models_of_run(Run.existing(run), names, settings)
    if run is not None and not names:
        raise ConfigError(f"{run} holds no run (no {CONFIG})", "correct --run, or name models with --model")
    if not names:
        raise ConfigError("no model is named", "use --run, --model or --answers")
    from ray_jobs.pipeline import seed_model
    from ray_jobs.rounds import Model

    folder = {"run": run or DEFAULT_RUN}
    configs = [configuration.load(None, settings, {**folder, "captioner.ref": name}) for name in names]
    seeds = [seed_model(config) for config in configs]
    return configs[0], [Model(f"m{number}", seed.ref, seed.fingerprint) for number, seed in enumerate(seeds)]


def _models_of_run(
    run: Run, names: Sequence[str], settings: Sequence[str]
) -> tuple[configuration.RunConfig, list["Model"]]:
    from ray_jobs.pipeline import seed_model
    from ray_jobs.stages.answering import models_of

    known = models_of(run, seed_model(run.config))
    unknown = set(names) - {model.name for model in known}
    if unknown:
        have = ", ".join(model.name for model in known)
        raise ConfigError(f"--model {min(unknown)}: {run.folder.uri} has {have}", "name some of them, or omit --run")
    config = configuration.with_overrides(run.config, settings)
    return config, [model for model in known if not names or model is known[0] or model.name in names]


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
