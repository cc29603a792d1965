from datetime import date

import pytest

from jsfree.checks.findings import Verdict
from jsfree.checks.judge import check_judge
from jsfree.judge.settings import JudgeSettings
from jsfree.judge.simulated import SimulatedJudge

TODAY = date(2026, 11, 27)


def check(tmp_path, **values):
    server = SimulatedJudge(lambda text, images: "", shutdown_date=values.pop("shutdown_date", None))
    with server.serve() as url:
        settings = {"url": url, "model": "simulated-judge", "revision": "r1", "cache": str(tmp_path), **values}
        found = check_judge(JudgeSettings(**settings), TODAY)
    assert server.received == []  # nothing is paid
    return [(finding.verdict, finding.found) for finding in found]


def test_a_served_model_passes(tmp_path):
    assert check(tmp_path) == [(Verdict.OK, "the server has the model")]


@pytest.mark.parametrize(
    ("end", "verdict", "text"),
    [
        ("2027-01-14", Verdict.NOTE, "on 2027-01-14, in 48 days"),
        ("2026-11-27", Verdict.FAILS, "shut the model down on 2026-11-27"),
    ],
)
def test_the_announced_end_of_a_model_is_shown(tmp_path, end, verdict, text):
    found = check(tmp_path, shutdown_date=end)
    assert found[1][0] == verdict
    assert text in found[1][1]
    assert len(check(tmp_path, shutdown_date="2029-01-01")) == 1


def test_a_missing_model_a_missing_revision_and_a_missing_server_are_found(tmp_path):
    assert check(tmp_path, model="other")[0] == (Verdict.FAILS, "the server does not have the model 'other'")
    assert "revision is not known" in check(tmp_path, revision=None)[1][1]
    settings = JudgeSettings(url="http://127.0.0.1:9/v1", cache=str(tmp_path))
    assert check_judge(settings, TODAY)[0].verdict == Verdict.FAILS
