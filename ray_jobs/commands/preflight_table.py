"""What ``jsfree preflight`` and ``jsfree plan`` print."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jsfree.checks.findings import Finding, Verdict
from jsfree.config import RunConfig
from jsfree.errors import PreflightError
from jsfree.sizing.rates import StageTime
from ray_jobs.commands.preflight import Preflight, preflight

STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.FAILS: "bold red"}
HOUR = 3600


def show(result: Preflight, console: Console, price: float | None = None, *, every_way: bool = False) -> None:
    """All findings, the ways to train if asked for, times, and how it ends.

    Args:
        price: of a device-hour.
    """
    console.print(_findings(result.findings))
    if every_way and result.training:
        console.print(_ways(result.training))
    if result.times:
        console.print(_times(result.times, price))
    console.print(summary(result), soft_wrap=True)


def require(config: RunConfig, console: Console) -> None:
    """Look at a configuration before a run, and go on only if nothing stands in its way.

    Raises:
        PreflightError: something does.
    """
    result = preflight(config)
    problems = [finding for finding in result.findings if finding.verdict is not Verdict.OK]
    if problems:
        console.print(_findings(problems))
    console.print(summary(result), soft_wrap=True)
    if not result.works:
        raise PreflightError(f"the run cannot work so: {reasons(result)}")


def summary(result: Preflight) -> str:
    """How many checks ended how."""
    counted = {verdict: sum(finding.verdict is verdict for finding in result.findings) for verdict in Verdict}
    told = f"{len(result.findings)} checks; notes: {counted[Verdict.NOTE]}, failures: {counted[Verdict.FAILS]}"
    return f"Preflight: {told}" + ("." if result.works else "; the run cannot work so.")


def reasons(result: Preflight) -> str:
    """What stands in the way and what to do, in one line."""
    failed = [finding for finding in result.findings if finding.verdict is Verdict.FAILS]
    return ". ".join("; ".join(filter(None, (finding.found, finding.remedy))) for finding in failed)


def _findings(found: list[Finding]) -> Table:
    table = Table(show_lines=False, pad_edge=False)
    for column in ("", "", "Check"):
        table.add_column(column, no_wrap=column != "Check", min_width=None if column != "Check" else 12)
    table.add_column(Text.assemble("Finding, ", ("remedy", "dim")), ratio=1)
    area = ""
    for finding in found:
        remedy = (f"\n-> {finding.remedy}" if finding.remedy else "", "dim")
        shown = "" if finding.area == area else finding.area
        verdict = Text(str(finding.verdict), STYLES[finding.verdict])
        table.add_row(verdict, shown, Text(finding.name), Text.assemble(finding.found, remedy))
        area = finding.area
    return table


def _ways(ways: list[tuple[str, float, bool]]) -> Table:
    table = Table(title="Memory of a training worker, with activations", title_justify="left", pad_edge=False)
    table.add_column("Mode")
    table.add_column("GB", justify="right")
    table.add_column("Fits")
    for name, size, fits in ways:
        table.add_row(name, f"{size:.3g}", Text("yes", "green") if fits else Text("no", "red"))
    return table


def _times(times: list[StageTime], price: float | None) -> Table:
    table = Table(title="Time, of all rounds", title_justify="left", pad_edge=False)
    for column in ("Stage", "Work", "Devices"):
        table.add_column(column)
    for column in ("Time", "Device-hours", *(["Cost"] if price else [])):
        table.add_column(column, justify="right")
    table.add_column("How it is known")
    for time in times:
        table.add_row(time.stage, time.work, time.devices, *_costs(time, price), time.known)
    told = [time for time in times if time.seconds is not None and time.device_seconds is not None]
    if len(told) == len(times):
        seconds = sum(time.seconds or 0 for time in told)
        devices = sum(time.device_seconds or 0 for time in told)
        total = StageTime("together", "", "", seconds, devices, "")
        table.add_section()
        table.add_row(total.stage, "", "", *_costs(total, price), "")
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
