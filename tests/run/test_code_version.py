"""Code is compared by content and libraries by version, and differences are named in the error."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jsfree.errors import CodeError
from jsfree.run import code_version
from tests.support import ROOT


@pytest.fixture
def other_place(tmp_path) -> Path:
    """A copy of the project's code in another folder."""
    for name in ("jsfree", "ray_jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copytree(ROOT / "jsfree/miniworld/weights", tmp_path / "jsfree/miniworld/weights")
    if (ROOT / "serve").exists():
        shutil.copytree(ROOT / "serve", tmp_path / "serve", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def compared_in(folder: Path) -> str:
    """Returns the error of a process that imports the code in ``folder`` and is compared with this process."""
    code = (
        "import sys, ast\n"
        "from jsfree.run import code_version as found\n"
        "found.require_same_code(found.CodeVersion(**ast.literal_eval(sys.stdin.read())), 'node n1')"
    )
    mine = repr(dataclasses.asdict(code_version.current_version()))
    done = subprocess.run([sys.executable, "-c", code], input=mine, capture_output=True, text=True, cwd=folder)
    return done.stderr.strip()


def test_the_same_code_in_another_folder_is_accepted(other_place):
    (other_place / "jsfree" / "__pycache__").mkdir()
    (other_place / "jsfree" / "__pycache__" / "config.cpython-311.pyc").write_bytes(b"compiled")
    assert compared_in(other_place) == ""


def test_changed_missing_and_added_files_are_reported(other_place):
    with (other_place / "jsfree" / "errors.py").open("a") as file:
        file.write("# other\n")
    (other_place / "ray_jobs" / "rounds.py").unlink()
    (other_place / "ray_jobs" / "extra.py").write_text("")
    last = compared_in(other_place).splitlines()[-1]
    assert last.startswith("jsfree.errors.CodeError: node n1 has other code than the driver: other jsfree/errors.py")
    assert "and 2 more files" in last
    assert f"imported from {other_place} (the driver's are in {ROOT})" in last


def test_edits_in_a_folder_shared_with_the_driver_are_accepted():
    here = code_version.current_version()
    before_the_edit = dataclasses.replace(here, files={**here.files, "jsfree/errors.py": "as it was"})
    assert code_version.differences(before_the_edit, here) == []
    elsewhere = dataclasses.replace(before_the_edit, folders="another machine")
    assert len(code_version.differences(elsewhere, here)) == 1


def test_different_weights_are_reported(other_place):
    weights = next((other_place / "jsfree/miniworld/weights").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert weights.name in compared_in(other_place)


def test_different_libraries_are_reported_with_both_versions():
    here = code_version.current_version()
    assert code_version.differences(here, here) == []
    other = dataclasses.replace(here, versions={**here.versions, "torch": "1.0", "python": "3.8.1"})
    assert code_version.differences(other, here) == [
        f"python {here.versions['python']} instead of 3.8.1",
        f"torch {here.versions['torch']} instead of 1.0",
    ]


def test_an_upload_that_matches_the_environment_is_accepted():
    code_version.require_uploaded_code(ROOT)


def test_an_upload_locked_to_other_libraries_is_refused(tmp_path):
    lock = (ROOT / "uv.lock").read_text()
    version = code_version.installed("transformers")
    named = f'name = "transformers"\nversion = "{version}"'
    assert named in lock
    (tmp_path / "uv.lock").write_text(lock.replace(named, 'name = "transformers"\nversion = "99.0"'))
    with pytest.raises(CodeError, match=rf"transformers {version} instead of 99.0 in uv.lock; .*uv sync --frozen"):
        code_version.require_uploaded_code(tmp_path)


def test_an_upload_shadowed_by_installed_code_is_refused(other_place):
    """The node imports its installed jsfree instead of the uploaded one."""
    (other_place / "jsfree" / "stages" / "ratios.py").write_text("")
    with pytest.raises(CodeError, match=rf"other jsfree/stages/ratios.py, imported from {ROOT} .*{other_place}"):
        code_version.require_uploaded_code(other_place)


def test_an_invalid_lock_file_is_reported(tmp_path):
    (tmp_path / "uv.lock").write_text("no lock")
    with pytest.raises(CodeError, match="is not a lock file of uv"):
        code_version.require_uploaded_code(tmp_path)
