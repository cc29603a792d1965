"""Checks of the Kubernetes manifests in deploy/, without a cluster.

Pods, volumes and the network policy are checked against Kubernetes' own schemas, Serve's section by Ray, the job's
command by this project's configuration. KubeRay's fields are only checked against this project's own schema;
its limits are described in kuberay_schema.py.
"""

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError

from jsfree import config
from tests.support import ROOT
from tests.support.kuberay_schema import KINDS

MANIFESTS = ("deploy/rayjob.yaml", "deploy/rayservice.yaml")
KUBERNETES = "1.31"
USER = 1000  # the user of the image, see test_deploy.py


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / name).read_text()))


def load(name: str) -> dict[str, Any]:
    (manifest,) = documents(name)
    return manifest


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec") or manifest["spec"]["rayClusterConfig"]


def pods(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = cluster_of(manifest)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    if "submitterPodTemplate" in manifest["spec"]:
        found["submitter"] = manifest["spec"]["submitterPodTemplate"]
    return found


def check_manifest(manifest: dict[str, Any]) -> None:
    """Validate KubeRay's fields with our schema and every pod with Kubernetes' schema."""
    KINDS[manifest["kind"]].model_validate(manifest)
    for template in pods(manifest).values():
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_valid(name):
    check_manifest(load(name))


def test_volumes_and_network_policy_are_valid():
    kinds = [document["kind"] for document in documents("deploy/kubernetes-base.yaml")]
    assert kinds == ["PersistentVolumeClaim", "PersistentVolumeClaim", "NetworkPolicy"]
    for document in documents("deploy/kubernetes-base.yaml"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("authOptions",), {"mod": "token"}),
        (("autoscalerOptions", "idleTimeoutSecs"), 5),
        (("workerGroupSpecs", 0, "maxReplicas"), "4"),
        (("workerGroupSpecs", 0, "minReplicas"), 9),
        (("headGroupSpec", "template", "spec", "containers", 0, "imagePullPolcy"), "Always"),
        (("headGroupSpec", "template", "spec", "volumes", 0, "emptyDr"), {}),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_errors_in_a_manifest_are_found(name, path, wrong):
    manifest = copy.deepcopy(load(name))
    part = cluster_of(manifest)
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = wrong
    with pytest.raises((ValidationError, kubernetes_validate.ValidationError)):
        check_manifest(manifest)


@pytest.mark.parametrize("name", MANIFESTS)
def test_ray_requires_the_token_and_the_head_runs_no_tasks(name):
    cluster = cluster_of(load(name))
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in cluster["workerGroupSpecs"]:
        (limits,) = [container["resources"]["limits"] for container in group["template"]["spec"]["containers"]]
        assert limits["nvidia.com/gpu"] > 0


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_run_without_privileges_and_without_secrets_in_the_file(name):
    manifest = load(name)
    for role, pod in pods(manifest).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, role
        assert spec["securityContext"]["runAsUser"] == USER, role
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), role
        assert role == "head" or spec["automountServiceAccountToken"] is False  # the head's autoscaler needs it
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }, role
            secrets = [e for e in container.get("env", []) if re.search("TOKEN|SECRET|KEY|PASSWORD", e["name"])]
            assert all("value" not in variable for variable in secrets), role


@pytest.mark.parametrize("name", MANIFESTS)
def test_volumes_and_network_policy_match_the_pods(name):
    claims = {d["metadata"]["name"] for d in documents("deploy/kubernetes-base.yaml") if "storage" in str(d["spec"])}
    (policy,) = [d for d in documents("deploy/kubernetes-base.yaml") if d["kind"] == "NetworkPolicy"]
    for role, pod in pods(load(name)).items():
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items(), role
        if role == "submitter":
            continue
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = {m["mountPath"]: volumes[m["name"]] for c in pod["spec"]["containers"] for m in c["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory", role
        assert {
            v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v
        } <= claims


def test_the_job_runs_a_valid_command():
    module, *rest = shlex.split(load("deploy/rayjob.yaml")["spec"]["entrypoint"])[1:3]
    assert (module, rest) == ("-m", ["ray_jobs.cli"])
    words = shlex.split(load("deploy/rayjob.yaml")["spec"]["entrypoint"])[3:]
    given = {flag: value for flag, value in zip(words[1::2], words[2::2], strict=True) if flag != "--set"}
    overrides = [value for flag, value in zip(words[1::2], words[2::2], strict=True) if flag == "--set"]
    assert words[0] == "run"
    assert set(given) == {"--config", "--run"}
    in_project = Path(given["--config"]).relative_to("/opt/jsfree")
    settings = config.load(ROOT / in_project, [*overrides, f"run={given['--run']}"])
    groups = cluster_of(load("deploy/rayjob.yaml"))["workerGroupSpecs"]
    known = {re.search(r"accelerator_type:(\w+)", group["rayStartParams"]["resources"])[1] for group in groups}
    assert {settings.train.resources.accelerator_type, settings.generate.resources.accelerator_type} == known


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # emitted by Ray on import
def test_the_service_matches_the_configuration_that_jsfree_serve_writes():
    from serve.deploy import check, deploy_config

    settings = yaml.safe_load(load("deploy/rayservice.yaml")["spec"]["serveConfigV2"])
    check(settings, "serveConfigV2")  # against Serve's schema, and for misspelled keys, which Serve ignores
    (application,) = settings["applications"]
    overrides = application["args"]["settings"]
    served = config.load(ROOT / "configs/llava-1.5-13b.yaml", [f"run={application['args']['run']}", *overrides])
    assert settings == deploy_config(served, overrides)
    assert served.serve.host == "0.0.0.0"  # the pod's network: loopback is not reachable from outside the pod
    assert served.serve.before.gpus == served.serve.after.gpus == 1
