"""The configuration for `serve deploy`, and runs and settings that cannot be served."""

import subprocess
import sys

import pytest
import yaml

from jsfree import config
from jsfree.errors import ConfigError, ModelError, RunError, ServeError
from jsfree.run.run import Manifest, Run
from ray_jobs.commands import serve as serve_models
from serve import deploy, proxy
from serve.app import Arguments, bind, build, served_models, serving_config
from serve.http.protocol import RunModel
from serve.keys import NO_KEYS
from tests.support import ROOT


def unserved(tmp_path, **settings) -> Run:
    return Run.open(config.build({"run": str(tmp_path / "run"), **settings}, "test"))


def finish(run: Run, number: int) -> None:
    run.finish(number, "train", Manifest(fingerprint="x", rows_in=1, rows_out=1))


def test_the_after_model_is_the_last_finished_one(tmp_path):
    run = unserved(tmp_path)
    (run.folder / "round-3" / "train").write_json("_inputs.json", {})  # begun, not done
    finish(run, 1)
    finish(run, 2)
    before, after = served_models(run)
    assert (before.role, before.name, before.ref) == ("before", "m0", "miniworld:captioner")
    assert (after.role, after.name, after.ref) == ("after", "m2", run.stage(2, "model").uri)


def test_a_run_that_cannot_be_served_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        build(Arguments(run=str(tmp_path / "nothing")))
    run = unserved(tmp_path)
    with pytest.raises(RunError, match="no trained model yet; finish it with `jsfree run"):
        build(Arguments(run=run.folder.uri))
    finish(run, 1)
    with pytest.raises(ModelError, match="round-1/model"):
        build(Arguments(run=run.folder.uri))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("serve.slot=3", "unknown key 'serve.slot'; did you mean 'slots'?"),
        ("serve.port=0", "serve.port"),
        ("serve.after.min_replicas=1", "cannot be used for serving"),
        ("captioner.preprocessing=pad", "a run is served with its own settings"),
        ("serve.after.gpus=2", "a model uses one GPU"),
    ],
)
def test_an_invalid_setting_is_named(finished_run, override, told):
    with pytest.raises(ConfigError) as error:
        serving_config(finished_run.run.folder.uri, [override])
    assert told in str(error.value)


def test_serving_settings_do_not_change_the_fingerprint():
    wide = config.build({"serve": {"slots": 99, "after": {"replicas": 4, "gpus": 1}}}, "test")
    assert wide.own_fingerprint == config.RunConfig().own_fingerprint
    assert config.differences(config.RunConfig(), wide) == []


def test_build_places_replicas_as_configured(finished_run):
    settings = ["serve.after.replicas=3", "serve.after.gpus=0.5", "serve.after.cpus=2", "serve.slots=4"]
    application = build(Arguments(run=finished_run.run.folder.uri, settings=settings))
    bound = application._bound_deployment
    after = bound.init_args[2]["after"]._bound_deployment
    assert bound.init_args[3].is_empty
    assert (after.name, after.num_replicas) == ("after", 3)
    assert after.ray_actor_options["num_cpus"] == 2
    assert after.ray_actor_options["num_gpus"] == 0.5
    assert after.max_ongoing_requests > 4 + finished_run.run.config.serve.max_waiting


def test_models_of_all_rounds_scorers_and_autoscaling_are_deployed_as_configured(finished_run):
    scaling = "serve.after.autoscaling={min: 1, max: 3, target: 8, up_after_s: 20, down_after_s: 90}"
    settings = [scaling, "serve.scores=deployment", "serve.scorer.cpus=2", "serve.drain_s=7"]
    config = serving_config(finished_run.run.folder.uri, settings)
    models = [RunModel("before", "m0", "x"), RunModel("m1", "m1", "y", "m0"), RunModel("after", "m2", "z", "m1")]
    _, _, deployments, _, scorer = bind(config, models, NO_KEYS)._bound_deployment.init_args
    assert list(deployments) == ["before", "m1", "after"]
    after, scorer = deployments["after"]._bound_deployment, scorer._bound_deployment
    autoscaling = after._deployment_config.autoscaling_config
    assert (autoscaling.min_replicas, autoscaling.max_replicas, autoscaling.target_ongoing_requests) == (1, 3, 8)
    assert (autoscaling.upscale_delay_s, autoscaling.downscale_delay_s, autoscaling.look_back_period_s) == (20, 90, 20)
    assert (scorer.name, scorer.ray_actor_options["num_cpus"]) == ("clip", 2)
    assert after._deployment_config.graceful_shutdown_timeout_s == 7


def test_serve_deploy_finds_the_builder_and_its_arguments(finished_run):
    """`serve run`, `serve deploy` and a RayService call the builder by its import path with a mapping."""
    import pydantic
    from ray._common.utils import import_attr
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as called

    builder = import_attr(deploy.IMPORT_PATH)
    arguments = {"run": finished_run.run.folder.uri, "settings": ["serve.after.replicas=2"]}
    assert called(builder, arguments)._bound_deployment.name == "http"
    with pytest.raises(pydantic.ValidationError, match="setings"):
        called(builder, {"run": finished_run.run.folder.uri, "setings": []})


def test_the_written_configuration_has_the_servers_settings(finished_run, tmp_path):
    file = tmp_path / "served.yaml"
    command = [sys.executable, "-m", "ray_jobs.cli", "serve", "--run", finished_run.run.folder.uri]
    options = ["--host", "0.0.0.0", "--port", "8123", "--set", "serve.slots=4", "--write-yaml", str(file)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "requests need a key: set JSFREE_API_KEY" in " ".join(done.stdout.split())
    assert "# Set JSFREE_API_KEY on the nodes" in file.read_text()
    written = yaml.safe_load(file.read_text())
    deploy.check(written, "the file")
    assert written["http_options"]["host"] == "0.0.0.0"
    assert written["http_options"]["port"] == 8123
    arguments = Arguments.model_validate(written["applications"][0]["args"])
    assert serving_config(arguments.run, arguments.settings).serve.slots == 4
    assert written["applications"][0]["import_path"] == "serve.app:build"


def test_the_nodes_of_the_ray_service_have_the_environment_of_jsfree_serve():
    groups = yaml.safe_load((ROOT / "deploy" / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
    for group in (groups["headGroupSpec"], *groups["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        found = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert {proxy.VARIABLE: proxy.CALLBACK, **deploy.ENVIRONMENT}.items() <= found.items()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(http_option={}), "unknown key 'http_option'; did you mean 'http_options'?"),
        (lambda c: c["http_options"].update(hots="x"), "unknown key 'http_options.hots'; did you mean 'host'?"),
        (lambda c: c["applications"][0].update(rout_prefix="/"), "applications[0].rout_prefix"),
        (lambda c: c["applications"][0].update(deployments=[{"name": "http", "num_replica": 2}]), "num_replica"),
        (lambda c: c["applications"][0]["args"].update(runn="x"), "runn"),
        (lambda c: c["http_options"].update(port="high"), "port"),
        (lambda c: c.pop("applications"), "applications"),
    ],
)
def test_a_misspelled_configuration_is_refused(finished_run, change, told):
    written = deploy.deploy_config(finished_run.run.config, [])
    change(written)
    with pytest.raises(ConfigError) as error:
        deploy.check(written, "served.yaml")
    assert told in str(error.value)
    assert str(error.value).startswith("served.yaml: ")


@pytest.mark.parametrize(
    ("settings", "gpus", "fits"),
    [
        ([], 0, True),
        (["serve.after.gpus=1"], 0, False),
        (["serve.before.gpus=1", "serve.after.gpus=1"], 1, False),
        (["serve.before.gpus=1", "serve.after.gpus=1"], 2, True),
        (["serve.before.gpus=0.5", "serve.after.gpus=0.5"], 1, True),
        (["serve.before.replicas=5"], 0, False),
        (["serve.before.autoscaling={min: 1, max: 5}"], 0, True),
        (["serve.scores=deployment", "serve.scorer.gpus=1"], 0, False),
        (["serve.scores=deployment", "serve.scorer.gpus=1"], 1, True),
        (["serve.scorer.gpus=1"], 0, True),
    ],
)
def test_replicas_that_do_not_fit_are_refused(finished_run, settings, gpus, fits):
    wanted = serving_config(finished_run.run.folder.uri, settings)
    models, nodes = served_models(finished_run.run), [{"CPU": 4.0, "GPU": float(gpus)}]
    if fits:
        serve_models.require_capacity(wanted, models, nodes)
        return
    with pytest.raises(ServeError, match=r"lower serve\.before and serve\.after"):
        serve_models.require_capacity(wanted, models, nodes)


def test_a_local_cluster_has_the_cpus_of_all_deployments(finished_run):
    settings = ["serve.scores=deployment", "serve.scorer.cpus=4"]
    wanted, models = serving_config(finished_run.run.folder.uri, settings), served_models(finished_run.run)
    assert serve_models._with_cpus(wanted, models).ray.num_cpus >= 1 + 1 + 1 + 4  # HTTP, before, after, CLIP
    with pytest.raises(ServeError, match=r"clip: 1 x .*serve\.scorer"):
        serve_models.require_capacity(wanted, models, [{"CPU": 3.0}])


def test_the_printed_usage_names_the_models(finished_run):
    config = finished_run.run.config
    models = [RunModel("before", "m0", "x"), RunModel("m1", "m1", "y", "m0"), RunModel("after", "m2", "z", "m1")]
    assert "models: before, m1, after)" in serve_models.usage(config, models)
    assert "models: before, after)" in serve_models.usage(config, [models[0], models[2]])


def test_a_port_in_use_is_refused_before_ray_starts(finished_run):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        held = serving_config(finished_run.run.folder.uri, [f"serve.port={port}"])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}.*choose another"):
            serve_models._require_free_port(held)


def test_a_file_name_stays_in_the_comment(finished_run):
    """A name with spaces is quoted for the shell; one with a line break adds no key to the configuration."""
    run = finished_run.run.config
    assert "serve deploy 'my file.yaml'\n" in deploy.deploy_yaml(run, [], "my file.yaml")
    written = yaml.safe_load(deploy.deploy_yaml(run, [], "x\nhttp_options: {host: 0.0.0.0}\n.yaml"))
    assert written == deploy.deploy_config(run, [])


def test_a_server_open_to_other_machines_is_not_built_without_a_key(finished_run, monkeypatch):
    run = finished_run.run.folder.uri
    for name in ("JSFREE_API_KEY", "JSFREE_KEYS_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="has no keys"):
        build(Arguments(run=run, settings=["serve.host=0.0.0.0"]))
    assert build(Arguments(run=run, settings=["serve.host=0.0.0.0", "serve.no_auth=true"]))
    monkeypatch.setenv("JSFREE_API_KEY", "a secret")
    application = build(Arguments(run=run, settings=["serve.host=0.0.0.0"]))
    assert not application._bound_deployment.init_args[3].is_empty
    assert "a secret" not in repr(application._bound_deployment.init_args)
