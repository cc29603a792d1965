"""Votes are a table of their own: appended at once by many, tallied by pair, exported, and read by no stage."""

import ast
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from jsfree import config
from jsfree.monitor import votes as table
from jsfree.monitor.votes import Vote, add_vote, export_votes, read_votes, tally
from jsfree.run.folder import Folder
from jsfree.run.run import Run
from tests.support import ROOT


def vote(winner: str = "m1", loser: str = "m0", tie: bool = False, seed: int = 0) -> Vote:
    return Vote(winner=winner, loser=loser, tie=tie, image="0" * 64, ratio=0.0, views=1, temperature=0.0, seed=seed)


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.open(config.build({"run": str(tmp_path / "run")}, where="test"))


def test_votes_of_several_writers_are_all_kept_in_order(run):
    with ThreadPoolExecutor(8) as writers:
        assert all(writers.map(lambda seed: add_vote(run, vote(seed=seed)), range(40)))
    add_vote(run, vote(seed=99))
    votes = read_votes(run)
    assert sorted(each.seed for each in votes[:-1]) == list(range(40))
    assert votes[-1].seed == 99
    assert all(each.cast for each in votes)


def test_the_tally_counts_wins_and_ties_of_each_pair():
    cast = [vote(), vote("m0", "m1"), vote("m0", "m1", tie=True), vote("m10", "m2"), vote()]
    assert tally(cast) == [
        {"models": ["m0", "m1"], "wins": [1, 2], "ties": 1},
        {"models": ["m2", "m10"], "wins": [0, 1], "ties": 0},
    ]
    assert tally([]) == []


def test_a_run_stores_a_limited_number_of_votes(run, monkeypatch):
    monkeypatch.setattr(table, "MAX_VOTES", 2)
    assert [add_vote(run, vote()) for _ in range(3)] == [True, True, False]


def test_votes_are_exported_as_lines(run, tmp_path):
    add_vote(run, vote(seed=7))
    assert export_votes(run, Folder(str(tmp_path / "out"))) == 1
    assert json.loads((tmp_path / "out" / "votes.jsonl").read_text())["seed"] == 7


@pytest.mark.parametrize("options", [(), ("--votes",)])
def test_votes_leave_the_run_only_on_request(one_round, tmp_path, options):
    from ray_jobs import cli

    out = tmp_path / "out"
    arguments = ["export", "--run", one_round.folder.uri, "--format", "trl", "--out", str(out), *options]
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert (out / "votes.jsonl").exists() == bool(options)


def test_no_stage_reads_votes():
    """Only the page, the export and their commands import the table; the method has no human in the loop."""
    readers = set()
    for path in [each for package in ("jsfree", "ray_jobs", "serve") for each in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "jsfree.monitor.votes":
                readers.add(path.relative_to(ROOT).as_posix())
    assert readers == {"ray_jobs/cli.py", "serve/http/page.py"}
