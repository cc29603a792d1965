"""Folders are compared by their resolved location, not by their spelling."""

import os
from pathlib import Path

import pytest

from jsfree import config
from jsfree.errors import ConfigError, RunError
from jsfree.run.folder import Folder
from jsfree.run.locations import (
    enclosing_run,
    is_same_location,
    is_within,
    require_base_from_here,
    require_outside_runs,
    require_own_folder,
)
from jsfree.run.run import Run


def make_run(uri: str, **settings) -> Run:
    return Run.open(config.build({"run": uri, **settings}, where="test"))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working directory, with ``a/b/c``, ``other``, ``link`` to ``a/b``, and ``loop`` to the directory itself."""
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "loop").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b/", "other/../a/b", True),
        ("./a//b", "{here}/loop/loop/a/b", True),
        ("link", "a/b", True),
        ("link/c", "a/b", True),
        ("link/new/folder", "a", True),
        ("a/b/new", "link", True),
        ("file://{here}/link", "a", True),
        ("link/../other", "a", True),  # the parent of the link's target
        ("a", "a/b", False),
        ("other", "a", False),
        ("a/bc", "a/b", False),
        ("memory://a/b", "a", False),
        ("memory://x/y/../y/z", "memory://x/y", True),
        ("memory://x//y", "memory://x/./y/", True),
        ("memory://x/yz", "memory://x/y", False),
    ],
)
def test_is_within_ignores_the_spelling_of_both_folders(place, inner, outer, expected):
    assert is_within(Folder(inner.format(here=place)), Folder(outer.format(here=place))) is expected


@pytest.mark.parametrize(
    ("path", "other", "expected"),
    [
        ("a/b/x.json", "loop/link/x.json", True),
        ("a/b/x.json", "file://{here}/a/./b/x.json", True),
        ("a/absent-{{0..9}}.tar", "./a/absent-{{0..9}}.tar", True),
        ("a/b/x.json", "a/b/hard.json", True),
        ("a/b/x.json", "a/x.json", False),
        ("a", "a/b", False),
        ("s3://box/a/", "s3://box/a", True),
        ("s3://box/a", "s3://other/a", False),
        ("s3://box/a", "a", False),
    ],
)
def test_is_same_location_ignores_the_spelling_of_both_paths(place, path, other, expected):
    (place / "a" / "b" / "x.json").touch()
    os.link(place / "a" / "b" / "x.json", place / "a" / "b" / "hard.json")
    path, other = path.format(here=place), other.format(here=place)
    assert is_same_location(path, other) is is_same_location(other, path) is expected


def test_folders_inside_a_run_are_recognized(place):
    make_run("runs/x")
    make_run(f"memory://{place.name}/run")
    (place / "into").symlink_to(place / "runs" / "x" / "round-1")
    inside = [
        "runs/x",
        "runs/x/round-1/model",
        "loop/runs/../runs/x/new",
        "into/model",
        f"memory://{place.name}/run/a/b",
    ]
    for uri in inside:
        assert enclosing_run(Folder(uri)) is not None, uri
        with pytest.raises(ConfigError, match="belongs to the run"):
            require_outside_runs("--to", Folder(uri))
    Folder("project").write("config.yaml", b"run: x")  # the configuration of another program
    Folder("project").write("sub/config.yaml", b"[")
    for uri in ("runs", "runs/y", "project/sub/models", f"memory://{place.name}/runs", "memory://", "/"):
        assert enclosing_run(Folder(uri)) is None, uri


def test_folders_inside_a_damaged_run_are_recognized(place):
    run = make_run("runs/x")
    run.folder.write_json("run.json", {})
    run.folder.write("config.yaml", b"\xff[")
    assert enclosing_run(run.folder / "round-1") is not None


def test_the_configuration_of_a_moved_run_is_refused(place):
    run = make_run("runs/x")
    file = Path("runs/x/config.yaml")
    require_own_folder(file, run.config)
    require_own_folder(place / "loop" / file, run.config)
    require_own_folder(Path("configs/miniworld.yaml"), run.config)
    os.rename("runs/x", "runs/moved to")
    with pytest.raises(ConfigError, match=r"but its 'run' is 'runs/x'.*add --run '.*/runs/moved to' to use it"):
        require_own_folder(Path("runs/moved to/config.yaml"), run.config)


def test_a_relative_captioner_requires_the_original_working_directory(place, monkeypatch):
    run = Run.existing(make_run("runs/x", captioner={"ref": "a/b"}).folder.uri)
    run.folder.write_json("run.json", {"directory": str(place)})
    require_base_from_here(run)
    monkeypatch.chdir(place / "other")
    with pytest.raises(RunError, match=rf"'captioner.ref' is 'a/b'.*repeat the command there: cd {place}"):
        require_base_from_here(run)
    for ref in ("owner/name", str(place / "a"), "s3://x/y"):
        require_base_from_here(Run(run.config.model_copy(update={"captioner": config.CaptionerSettings(ref=ref)})))
