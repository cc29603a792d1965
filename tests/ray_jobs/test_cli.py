"""The command line: one line per error, exit codes, help, and printed commands."""

import os
import shlex
import subprocess
import sys

import pytest

from jsfree import config
from jsfree.errors import ConfigError, StorageError
from jsfree.miniworld import world
from jsfree.run.run import Run
from jsfree.run.stages import STAGES
from tests.support import ROOT


def jsfree(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )


def run_in(tmp_path, *settings: str) -> tuple[str, ...]:
    return ("run", "--run", str(tmp_path / "run"), *(part for setting in settings for part in ("--set", setting)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        (["source.kind=folder", "source.path={tmp}/absent"], 1, "{tmp}/absent does not exist"),
        (["sorce.count=3"], 2, "unknown key 'sorce'; did you mean 'source'?"),
        (["source.count=many"], 2, "source.count: Input should be a valid integer"),
        (["run=/proc/run"], 1, "cannot be written: No such file or directory"),
    ],
)
def test_bad_input_is_a_one_line_error(tmp_path, settings, code, told):
    arguments = run_in(tmp_path, *(setting.format(tmp=tmp_path) for setting in settings))
    if any(setting.startswith("run=") for setting in settings):
        arguments = ("run", *arguments[3:])
    done = jsfree(*arguments)
    assert done.returncode == code, done.stderr
    assert told.format(tmp=tmp_path) in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_changed_configuration_is_refused_on_a_run(tmp_path):
    (tmp_path / "images").mkdir()
    world.draw(world.scene("unlabelled", 0)).save(tmp_path / "images" / "a.png")
    (tmp_path / "run" / "round-1" / "samples").mkdir(parents=True)
    source = ["source.kind=folder", f"source.path={tmp_path}/images", "source.count=1"]
    first = config.load(None, [f"run={tmp_path}/run", *source])
    Run.open(first).begin(1, "samples", "made of something else")
    done = jsfree(*run_in(tmp_path, *source, "seed=5"), "--no-preflight")
    assert done.returncode == 2, done.stderr
    assert "seed: 0 -> 5" in done.stderr
    assert "--restart samples" in done.stderr


def test_version_and_usage_are_printed():
    assert jsfree("--version").stdout.startswith("jsfree 0.")
    unknown = jsfree("rum")
    assert unknown.returncode == 2
    assert "Traceback" not in unknown.stderr


def test_a_report_without_a_run_is_refused(tmp_path):
    done = jsfree("report", "--run", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert "holds no run" in done.stderr


def test_the_picture_sheet_is_drawn(tmp_path):
    done = jsfree("miniworld", "show", "--out", str(tmp_path / "sheet.png"), "--count", "4")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sheet.png").stat().st_size > 2000


def test_every_stage_has_a_command_and_work_in_the_pipeline():
    from ray_jobs import cli, pipeline

    assert list(pipeline.WORK) == list(STAGES)
    assert set(STAGES) <= {command.name for command in cli.app.registered_commands}


def test_every_command_has_debug_and_the_help_groups_them():
    import typer
    from typer.testing import CliRunner

    from ray_jobs import cli

    group = typer.main.get_command(cli.app)
    commands = {**group.commands, **group.commands["miniworld"].commands, "": group}
    del commands["miniworld"]
    for name, command in commands.items():
        assert "--debug" in {option for parameter in command.params for option in parameter.opts}, name
    shown = CliRunner().invoke(cli.app, ["--help"]).output
    assert [panel in shown for panel in (cli.RUN, cli.STAGE, cli.DATA, cli.SERVICE)] == [True] * 4


@pytest.mark.parametrize("arguments", [["--debug", "report"], ["report", "--debug"]])
def test_debug_before_or_after_the_command_shows_the_traceback(tmp_path, arguments):
    done = jsfree(*arguments, "--run", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RunError: " in done.stderr


@pytest.mark.slow
def test_a_stage_out_of_order_names_the_command_to_run_first(tmp_path):
    done = jsfree("score", "--run", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    needed = "'score' of round 1 needs 'generate' of round 1, which is not done; first do `jsfree generate --round 1`"
    assert needed in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_job_refuses_a_run_that_would_be_lost_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    refused = jsfree("generate", "--run", "runs/x")
    assert refused.returncode == 2
    assert "run 'runs/x' is a relative path" in refused.stderr
    monkeypatch.setenv("JSFREE_HOME", str(tmp_path))
    taken = jsfree("score", "--run", "runs/x")
    assert taken.stderr.startswith(f"error: {tmp_path}/runs/x: 'score' of round 1 needs"), taken.stderr
    monkeypatch.setenv("JSFREE_HOME", str(tmp_path / "absent"))
    assert "absent: No such file or directory" in jsfree("score", "--run", "runs/x").stderr


@pytest.mark.slow
def test_a_run_held_by_another_driver_is_refused_but_its_report_is_built(tmp_path):
    from jsfree.run.folder import Folder
    from jsfree.run.lease import Lease

    with Lease(Folder(str(tmp_path / "run"))):
        done = jsfree(*run_in(tmp_path))
        reported = jsfree("report", "--run", str(tmp_path / "run"))
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: {tmp_path}/run is in use by ")
    assert f"(process {os.getpid()}) since " in done.stderr
    assert done.stderr.count("\n") == 1
    assert reported.returncode == 0, reported.stderr


def test_an_address_for_submitting_jobs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    done = jsfree(*run_in(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "'http://127.0.0.1:8265' accepts submitted jobs, not drivers; unset RAY_ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_moved_run_is_reported_from_its_new_folder(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from ray_jobs.cli import app
    from tests.support.example_run import build

    monkeypatch.chdir(tmp_path)
    build(tmp_path / "first run [v1]")
    stored = (tmp_path / "first run [v1]" / "config.yaml").read_text(encoding="utf-8")
    (tmp_path / "first run [v1]" / "config.yaml").write_text(
        stored.replace(str(tmp_path / "first run [v1]"), "runs/first"), encoding="utf-8"
    )
    done = CliRunner().invoke(app, ["report", "--run", "first run [v1]"])
    assert done.exit_code == 0, done.output
    assert "Before (m0) and after (m1)" in done.output
    assert f"Report: {tmp_path}/first run [v1]/report/index.html" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["first run [v1]"]
    for refused in (["generate", "--config", "first run [v1]/config.yaml"], ["report", "--run", ""]):
        done = CliRunner().invoke(app, refused)
        assert isinstance(done.exception, ConfigError | StorageError)
    assert "add --run '" in str(CliRunner().invoke(app, ["run", "--config", "first run [v1]/config.yaml"]).exception)


def test_option_values_are_literal_and_printed_commands_can_be_copied(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from ray_jobs import cli, pipeline

    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(pipeline, "run_stage", lambda config, *_: seen.append(config) or 1)
    for name in ("exp #1", "2024", "no", "null", "a: b", "::", "[x]", "'q'", '"quoted"', "r\u00fcn"):
        done = CliRunner().invoke(cli.app, ["generate", "--run", name, "--set", f"prompt=What is {name}?"])
        assert done.exit_code == 0, done.output
        assert (seen[-1].run, seen[-1].prompt) == (name, f"What is {name}?")
        for run in (name, f"memory://{name}"):
            given = ["import", "--format", "trl", "--from", f"{tmp_path}/{name}", "--run", run]
            done = CliRunner().invoke(cli.app, given)
            assert done.exit_code == 0, done.output
            assert (seen[-1].run, seen[-1].imported.path) == (run, f"{tmp_path}/{name}")
            command = shlex.split(done.output.split("Next:")[1].split("    (")[0].strip().removeprefix("jsfree "))
            assert command[command.index("--run") + 1] == run
            given = [command[at + 1] for at, part in enumerate(command) if part == "--set"]
            if given:
                assert config.load(None, given).imported == seen[-1].imported


def test_a_run_folder_of_any_name_is_served(tmp_path):
    from serve.app import serving_config

    for name in ("mini #1", "2024", "a: b"):
        Run.open(config.build({"run": "runs/elsewhere"}, "test").model_copy(update={"run": str(tmp_path / name)}))
        served = serving_config(str(tmp_path / name), ["serve.host=::", config.format_override("serve.port", 8001)])
        assert (served.run, served.serve.host, served.serve.port) == (str(tmp_path / name), "::", 8001)
