"""The output of ``jsfree preflight`` and ``jsfree plan``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jsfree.checks.findings import Finding, Verdict
from jsfree.config import RunConfig
from jsfree.errors import PreflightError
from jsfree.sizing.benchmarks import BenchmarkCost
from jsfree.sizing.rates import StageTime
from ray_jobs.commands.preflight import Preflight, preflight

STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.FAILS: "bold red"}
HOUR = 3600


def show(result: Preflight, console: Console, price: float | None = None, *, every_way: bool = False) -> None:
    """Print the findings, the time of each stage and a summary.

    Args:
        price: price of one device for one hour.
        every_way: also print the memory of every training mode.
    """
    console.print(_findings(result.findings))
    if every_way and result.training:
        console.print(_ways(result.training))
    if result.times:
        console.print(_times(result.times, price))
    if result.benchmarks:
        console.print(_benchmarks(result.benchmarks, price, result.currency))
    console.print(summary(result), soft_wrap=True)


def require(config: RunConfig, console: Console) -> None:
    """Run preflight before a run and print what is not in order.

    Raises:
        PreflightError: a check failed.
    """
    result = preflight(config)
    problems = [finding for finding in result.findings if finding.verdict is not Verdict.OK]
    if problems:
        console.print(_findings(problems))
    console.print(summary(result), soft_wrap=True)
    if not result.works:
        raise PreflightError(f"preflight failed: {reasons(result)}")


def summary(result: Preflight) -> str:
    """The numbers of checks, notes and failures, in one line."""
    counts = {verdict: sum(finding.verdict is verdict for finding in result.findings) for verdict in Verdict}
    line = f"Preflight: {len(result.findings)} checks; notes: {counts[Verdict.NOTE]}, failures: {counts[Verdict.FAILS]}"
    return line + ("." if result.works else "; the run would fail.")


def reasons(result: Preflight) -> str:
    """All failures with their remedies, in one line."""
    failed = [finding for finding in result.findings if finding.verdict is Verdict.FAILS]
    return ". ".join("; ".join(filter(None, (finding.found, finding.remedy))) for finding in failed)


def _findings(findings: list[Finding]) -> Table:
    table = Table(show_lines=False, pad_edge=False)
    for column in ("", "", "Check"):
        table.add_column(column, no_wrap=column != "Check", min_width=None if column != "Check" else 12)
    table.add_column(Text.assemble("Finding, ", ("remedy", "dim")), ratio=1)
    area = ""
    for finding in findings:
        remedy = (f"\n-> {finding.remedy}" if finding.remedy else "", "dim")
        new_area = "" if finding.area == area else finding.area
        verdict = Text(str(finding.verdict), STYLES[finding.verdict])
        table.add_row(verdict, new_area, Text(finding.name), Text.assemble(finding.found, remedy))
        area = finding.area
    return table


def _ways(ways: list[tuple[str, float, bool]]) -> Table:
    table = Table(title="Memory of a training worker, including activations", title_justify="left", pad_edge=False)
    table.add_column("Mode")
    table.add_column("GB", justify="right")
    table.add_column("Fits")
    for name, size, fits in ways:
        table.add_row(name, f"{size:.3g}", Text("yes", "green") if fits else Text("no", "red"))
    return table


def _times(times: list[StageTime], price: float | None) -> Table:
    table = Table(title="Time of all rounds", title_justify="left", pad_edge=False)
    for column in ("Stage", "Work", "Devices"):
        table.add_column(column)
    for column in ("Time", "Device-hours", *(["Cost"] if price else [])):
        table.add_column(column, justify="right")
    table.add_column("Basis")
    for time in times:
        table.add_row(time.stage, time.work, time.devices, *_costs(time, price), time.known)
    if all(time.seconds is not None and time.device_seconds is not None for time in times):
        seconds = sum(time.seconds or 0 for time in times)
        devices = sum(time.device_seconds or 0 for time in times)
        total = StageTime("total", "", "", seconds, devices, "")
        table.add_section()
        table.add_row(total.stage, "", "", *_costs(total, price), "")
    return table


def _benchmarks(costs: list[BenchmarkCost], price: float | None, currency: str) -> Table:
    """Time and cost of benchmarks, if they are run afterwards, for m0 and the model of every round."""
    table = Table(title="Benchmarks of the seed and of every round, on one GPU", title_justify="left", pad_edge=False)
    table.add_column("Benchmark")
    judge = f"Judge, {currency}" if currency else "Judge"
    for column in ("Answers", "Time", *(["Cost"] if price else []), "Requests", "Tokens in", "Tokens out", judge):
        table.add_column(column, justify="right")
    for cost in costs:
        time = StageTime(cost.title, "", "", cost.seconds, cost.seconds, cost.known)
        wall, _, *money = _costs(time, price)
        judged = "no prices" if cost.judge_cost is None else f"{cost.judge_cost:,.2f}"
        counts = (f"{count:,}" for count in (cost.judge_requests, cost.prompt_tokens, cost.reply_tokens))
        table.add_row(cost.title, f"{cost.answers:,}", wall, *money, *counts, judged)
    return table


def _costs(time: StageTime, price: float | None) -> list[str]:
    if time.seconds is None or time.device_seconds is None:
        return ["?", "?", *(["?"] if price else [])]
    hours = time.device_seconds / HOUR
    return [_duration(time.seconds), f"{hours:.2f}", *([f"{hours * price:,.2f}"] if price else [])]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"
