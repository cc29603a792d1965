"""Checks of a source's images."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsfree.checks.data import check_source
from jsfree.checks.findings import Verdict
from jsfree.config import build
from jsfree.images.sources import summarize_source


def checked(tmp_path, rows, **settings):
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    source = {"kind": "llava_json", "path": str(tmp_path / "mix.json"), "count": 1}
    config = build({"source": source, "evaluate": {"source": {"kind": "miniworld"}}, **settings}, where="test")
    return list(check_source(config, config.source, "source", summarize_source(config, config.source, 64, {})))


@pytest.mark.parametrize(("allowed", "verdict"), [(0.01, Verdict.FAILS), (0.5, Verdict.NOTE)])
def test_rows_without_a_usable_image_are_reported(allowed, verdict, tmp_path):
    rows = [{"image": "1.png"}, None, {"image": "2.png"}, {"image": "../3.png"}, {"image": "1.png"}, {"id": "text"}]
    found = checked(tmp_path, rows, max_failed_fraction=allowed)
    (shown,) = [finding for finding in found if finding.name == "source: rows"]
    assert shown.verdict == verdict
    assert "2 of 5 name no usable image (1 malformed, 1 outside), such as: " in shown.found
    assert "mix.json, row 1: is null" in shown.found


def test_the_first_rows_of_a_table_are_sampled(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"x"] * 500}), path, row_group_size=50)
    source = {"kind": "parquet", "path": str(path), "count": None}
    config = build({"source": source, "evaluate": {"source": {"kind": "miniworld"}}}, where="test")
    samples = summarize_source(config, config.source, 64, {}).samples
    assert {sample["image"]["id"] for sample in samples} == {f"x.parquet:{row}" for row in range(64)}
