"""What a sample of images tells about all of them."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsfree.checks.data import check_look, lower_bound
from jsfree.checks.findings import Verdict
from jsfree.config import build
from jsfree.images.sources import look_at


@pytest.mark.parametrize(("broken", "looked_at"), [(1, 64), (16, 64), (63, 64), (2, 5)])
def test_the_lower_bound_is_the_share_at_which_so_many_are_just_unlikely(broken, looked_at):
    bound, seen = lower_bound(broken, looked_at), broken / looked_at
    assert 0 < bound < seen
    assert (seen - bound) / math.sqrt(bound * (1 - bound) / looked_at) == pytest.approx(1.645)


def test_no_broken_image_bounds_nothing():
    assert lower_bound(0, 64) == 0


def looked_at(tmp_path, rows, **settings):
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    source = {"kind": "llava_json", "path": str(tmp_path / "mix.json"), "count": 1}
    config = build({"source": source, "evaluate": {"source": {"kind": "miniworld"}}, **settings}, where="test")
    return list(check_look(config, config.source, "source", look_at(config, config.source, 64, {})))


@pytest.mark.parametrize(("allowed", "verdict"), [(0.01, Verdict.FAILS), (0.5, Verdict.NOTE)])
def test_rows_that_name_no_usable_image_are_shown(allowed, verdict, tmp_path):
    rows = [{"image": "1.png"}, None, {"image": "2.png"}, {"image": "../3.png"}, {"image": "1.png"}, {"id": "text"}]
    found = looked_at(tmp_path, rows, max_failed_fraction=allowed)
    (shown,) = [finding for finding in found if finding.check == "source: rows"]
    assert shown.verdict == verdict
    assert "2 of 5 name no usable image (1 malformed, 1 outside), such as: " in shown.found
    assert "mix.json, row 1: is null" in shown.found


def test_of_a_table_the_first_rows_are_looked_at(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"x"] * 500}), path, row_group_size=50)
    source = {"kind": "parquet", "path": str(path), "count": None}
    config = build({"source": source, "evaluate": {"source": {"kind": "miniworld"}}}, where="test")
    samples = look_at(config, config.source, 64, {}).samples
    assert {sample["image"]["id"] for sample in samples} == {f"x.parquet:{row}" for row in range(64)}
