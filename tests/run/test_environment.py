"""The description of code and machine in ``run.json``."""

import subprocess

from jsfree.run import environment


def test_the_commit_is_recorded_only_in_a_checkout_of_jsfree(tmp_path, monkeypatch):
    package = tmp_path / "jsfree" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    monkeypatch.setattr(environment.jsfree, "__file__", str(package))
    assert "commit" not in environment.code()
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert (environment.code()["commit"], environment.code()["changed"]) == (head, False)
    package.write_text("x = 1\n")
    assert environment.code()["changed"] is True


def test_gpus_are_listed_with_their_driver(tmp_path, monkeypatch):
    """A program in place of nvidia-smi prints its output for two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nfor i in 1 2; do echo 'NVIDIA A100-SXM4-80GB, 81920, 580.65.06'; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = environment.machine()
    assert found["gpus"] == ["NVIDIA A100-SXM4-80GB, 81920 MiB"] * 2
    assert found["nvidia_driver"] == "580.65.06"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert "gpus" not in environment.machine()


def test_the_command_is_recorded_as_typed():
    assert environment.command(["/x/bin/jsfree", "run", "--set", "run=a b"]) == "jsfree run --set 'run=a b'"
