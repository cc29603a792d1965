"""Stages of a run are skipped, resumed or refused, and a run is opened from its folder."""

import pytest

from jsfree import config, schemas
from jsfree.errors import RunError, StorageError
from jsfree.run.folder import shard_name
from jsfree.run.run import Manifest, Run


def make_run(uri, **settings) -> Run:
    return Run.open(config.build({"run": str(uri), **settings}, where="test"))


def test_a_stage_is_skipped_resumed_or_refused(uri):
    run = make_run(uri)
    assert run.begin(1, "pairs", "abc") is None  # new
    assert run.begin(1, "pairs", "abc") is None  # unfinished: resumed
    done = run.finish(
        1, "pairs", Manifest(fingerprint="abc", rows_in=2, rows_out=2, seconds=1.0, device_seconds=1.0, tokens=9)
    )
    assert run.begin(1, "pairs", "abc") == done
    hotter = make_run(uri, generate={"decoding": {"temperature": 0.5}})
    with pytest.raises(RunError, match=r"generate.decoding.temperature: 1.0 -> 0.5.*--restart pairs"):
        hotter.begin(1, "pairs", "def")


def test_rounds_are_sorted_by_number(uri):
    run = make_run(uri)
    for name in ("round-10", "round-2", "round-1", "round-01", "round-x", "round-3.bak", "rounds"):
        (run.folder / name).write("file", b"")
    assert run.rounds() == [1, 2, 10]


@pytest.mark.parametrize("lost", [["_inputs.json"], ["_inputs.json", "_manifest.json"], ["_manifest.json"]])
def test_a_stage_without_recorded_inputs_is_refused(uri, lost):
    run = make_run(uri)
    run.begin(1, "pairs", "abc")
    run.stage(1, "pairs").write_table(shard_name(0), schemas.ERRORS.empty_table())
    run.finish(
        1, "pairs", Manifest(fingerprint="abc", rows_in=2, rows_out=2, seconds=1.0, device_seconds=1.0, tokens=9)
    )
    for name in lost:
        run.stage(1, "pairs").remove(name)
    for fingerprint in ("abc", "def"):
        if "_inputs.json" not in lost and fingerprint == "abc":
            assert run.begin(1, "pairs", fingerprint) is None  # resumed
            continue
        with pytest.raises(RunError, match="--restart pairs"):
            run.begin(1, "pairs", fingerprint)


def test_a_manifest_made_from_other_inputs_is_refused(uri):
    run = make_run(uri)
    run.begin(1, "pairs", "abc")
    run.finish(
        1, "pairs", Manifest(fingerprint="abc", rows_in=2, rows_out=2, seconds=1.0, device_seconds=1.0, tokens=9)
    )
    run.stage(1, "pairs").write_json("_inputs.json", {"fingerprint": "def"})
    for fingerprint in ("abc", "def"):
        with pytest.raises(RunError, match="was made with other settings"):
            run.begin(1, "pairs", fingerprint)


def test_unusable_run_folders_are_named_in_the_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"file/run/config\.yaml cannot be"):
        make_run(tmp_path / "file" / "run")
    with pytest.raises(RunError, match="holds no run"):
        Run.existing(str(tmp_path / "empty"))


def test_an_opened_run_uses_the_given_folder_not_the_stored_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run("runs/first", seed=7)
    (tmp_path / "runs" / "first").rename(tmp_path / "moved")
    make_run("runs/first", seed=8)
    (tmp_path / "link").symlink_to("moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for given in ("../moved", str(tmp_path / "moved"), "../link", "../elsewhere/../moved/", f"file://{tmp_path}/moved"):
        run = Run.existing(given)
        assert run.config.seed == 7
        run.folder.write("mark", given.encode())
        assert (tmp_path / "moved" / "mark").read_text(encoding="utf-8") == given
        assert Run(run.config).folder.path == run.folder.path
    assert list((tmp_path / "elsewhere").iterdir()) == []
