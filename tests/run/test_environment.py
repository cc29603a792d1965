"""The description of the code and the machine in ``run.json``."""

import subprocess

from jsfree.gpus import Driver
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


def test_gpus_are_recorded_with_their_driver(monkeypatch):
    driver = Driver("580.65.06", [("NVIDIA A100-SXM4-80GB", 81920 * 2**20)] * 2)
    monkeypatch.setattr(environment, "nvidia_driver", lambda: driver)
    facts = environment.machine()
    assert facts["gpus"] == ["NVIDIA A100-SXM4-80GB, 81920 MiB"] * 2
    assert facts["nvidia_driver"] == "580.65.06"
    monkeypatch.setattr(environment, "nvidia_driver", lambda: None)
    assert "gpus" not in environment.machine()


def test_the_command_is_recorded_as_typed():
    assert environment.command(["/x/bin/jsfree", "run", "--set", "run=a b"]) == "jsfree run --set 'run=a b'"
