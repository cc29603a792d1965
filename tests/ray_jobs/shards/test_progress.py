"""Tags of Ray's metrics, and broken progress displays."""

import logging

import pytest

from ray_jobs.shards.progress import Figures, Gauges, ascii_tag, harmless

FIGURES = Figures(
    rows=1,
    rows_in_all=2,
    rows_failed=0,
    rows_per_second=1.0,
    tokens_per_second=10.0,
    seconds_left=None,
    actors=1,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/runs/x 1", "/data/runs/x 1"),
        ("/data/rün", "/data/r%C3%BCn"),
        ("跑 100%", "%E8%B7%91 100%25"),
        ("a\nb", "a%0Ab"),
        ("\udcff", "%ED%B3%BF"),
    ],
)
def test_a_tag_is_ascii_for_any_run_name(text, expected):
    assert ascii_tag(text) == expected
    assert ascii_tag(text).isascii()
    Gauges(text, text).set(FIGURES)


def test_a_broken_display_is_logged_once(caplog):
    shown = []

    def broken(figures: Figures) -> None:
        shown.append(figures)
        raise UnicodeEncodeError("ascii", "ü", 0, 1, "ordinal not in range")

    display = harmless(broken, "progress")
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            display(FIGURES)
    assert len(shown) == 5
    assert [record.getMessage() for record in caplog.records] == ["progress cannot be shown; this is logged once"]
