"""Strings are printed literally, never as markup, and a failure to print does not fail a stage."""

import io
import logging
import re

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ray_jobs.commands.console import Reporter, plain_or_live
from ray_jobs.commands.metrics_table import _table

ODD = "/runs/x [v1] [bold]y[/] :car: [/nothing]"


def test_brackets_and_names_in_colons_are_printed_literally(capsys):
    console = plain_or_live()
    console.print(f"Report: {ODD}", soft_wrap=True)
    table = Table(title=ODD)
    table.add_column(ODD)
    table.add_row(ODD)
    console.print(table)
    Reporter(console).say(ODD)
    Reporter(console).say(Text.assemble(("Round 1", "bold"), f" {ODD}"))
    update = Reporter(console)._plain(ODD, 3)
    update(1, ODD)
    assert capsys.readouterr().out.count(ODD) == 8


def test_the_table_of_metrics_prints_a_mode_literally(capsys):
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    metrics = {when: {"[x]": {"recall": estimate, "words": estimate}} for when in ("before", "after")}
    plain_or_live().print(_table({**metrics, "scenes": 3}, "m1"))
    shown = capsys.readouterr().out
    assert "[x]: m0" in shown
    assert "50.0 40.0-60.0" in shown
    assert "0.5 0.4-0.6" in shown


def test_a_failure_to_print_is_logged_once_and_does_not_fail_the_stage(caplog):
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    console = plain_or_live()
    console.file = Full()
    reporter = Reporter(console)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            reporter.say(f"{number}")
        with reporter.progress("pairs", 2) as update:
            update(1, "")
    assert [record.getMessage() for record in caplog.records] == [
        "progress cannot be printed: [Errno 28] No space left on device"
    ]


def test_a_live_line_prints_the_title_literally():
    console = Console(file=io.StringIO(), force_terminal=True, width=200, _environ={"TERM": "xterm"})
    with Reporter(console)._live(ODD, 2) as update:
        update(1, ODD)
    assert ODD in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
