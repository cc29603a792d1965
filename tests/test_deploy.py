"""Checks of the cluster files, the Dockerfile and docs/operations.md, without a cluster.

The checks use the tools that read these files, as far as they run offline: Ray's launcher and autoscaler, hadolint
and this project's configuration. No test starts a node or builds an image.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import jsfree
from jsfree import config
from ray_jobs.cluster.capacity import max_replicas
from tests.support import ROOT

CLUSTERS = ("cluster.yaml", "deploy/cluster-local.yaml")
MANIFESTS = ("deploy/rayjob.yaml", "deploy/rayservice.yaml")
USER = 1000
LOCK = {package["name"]: package["version"] for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
TAG = f"{jsfree.__version__}-ray{LOCK['ray']}"


def read(name: str) -> str:
    return (ROOT / name).read_text()


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load(read(name))


def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """A cluster file as `ray up` resolves it, with defaults; raises what `ray up` raises."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    ready = prepare_config(cluster)
    validate_config(ready)
    return ready


def ray_start(commands: list[str]) -> list[str]:
    """The arguments of the only command that starts Ray."""
    (start,) = [shlex.split(command) for command in commands if "ray start" in command]
    return start


def option(words: list[str], name: str) -> str:
    (value,) = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return value


def containers_environment(cluster: dict[str, Any]) -> dict[str, str]:
    words = shlex.split(" ".join(cluster["docker"]["run_options"]))
    return dict(value.split("=", 1) for flag, value in pairwise(words) if flag == "--env")


# --- cluster files for `ray up` ---


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_accepts_the_cluster_file(name):
    assert prepared(load(name))["cluster_name"] == "jsfree"
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        prepared({**load(name), "idle_timeout_minuts": 5})


def test_the_head_runs_no_tasks():
    assert load("cluster.yaml")["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}
    start = ray_start(load("deploy/cluster-local.yaml")["head_start_ray_commands"])
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(start)


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_node_requires_and_has_the_token(name):
    cluster = prepared(load(name))
    for role in ("head", "worker"):
        start = ray_start(cluster[f"{role}_start_ray_commands"])
        assert option(start, "RAY_AUTH_MODE") == "token"
        assert str(Path(option(start, "RAY_AUTH_TOKEN_PATH")).parent) in cluster["file_mounts"]
    inside = containers_environment(cluster)  # for commands such as `ray exec` and `ray status`
    assert inside["RAY_AUTH_MODE"] == "token"
    assert inside["RAY_AUTH_TOKEN_PATH"] == option(start, "RAY_AUTH_TOKEN_PATH")


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_port_is_open_to_the_internet(name):
    cluster = prepared(load(name))
    head, worker = (ray_start(cluster[f"{role}_start_ray_commands"]) for role in ("head", "worker"))
    assert option(head, "--dashboard-host") == "127.0.0.1"
    assert option(head, "--metrics-export-port") == option(worker, "--metrics-export-port")  # one firewall rule
    assert "0.0.0.0" not in yaml.safe_dump(cluster)


@pytest.mark.parametrize("name", CLUSTERS)
def test_nodes_install_nothing_when_they_start(name):
    """Ray's defaults for AWS would replace the image's Ray with a nightly build."""
    cluster = prepared(load(name))
    assert [cluster[f"{kind}setup_commands"] for kind in ("", "head_", "worker_")] == [[], [], []]


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_object_store_fits_into_shared_memory(name):
    cluster = prepared(load(name))
    (size,) = re.findall(r"--shm-size=(\d+)g", " ".join(cluster["docker"]["run_options"]))
    for role in ("head", "worker"):
        assert (
            int(option(ray_start(cluster[f"{role}_start_ray_commands"]), "--object-store-memory")) < int(size) * 2**30
        )


def test_aws_nodes_are_closed_by_default():
    cluster = load("cluster.yaml")
    assert cluster["provider"]["use_internal_ips"] is True
    for name, kind in cluster["available_node_types"].items():
        node = kind["node_config"]
        interfaces = node.get("NetworkInterfaces", [])
        # Without a configured security group, Ray creates one whose port 22 is open to the internet.
        assert node.get("SecurityGroupIds") or (interfaces and all(face["Groups"] for face in interfaces)), name
        assert node["MetadataOptions"]["HttpTokens"] == "required", name
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"]), name
        assert "IamInstanceProfile" in node, name


def test_the_training_node_has_its_four_efa_interfaces():
    kinds = load("cluster.yaml")["available_node_types"]
    faces = kinds["train"]["node_config"]["NetworkInterfaces"]
    assert {face["InterfaceType"] for face in faces} == {"efa"}
    assert [(face["NetworkCardIndex"], face["DeviceIndex"]) for face in faces] == [(0, 0), (1, 1), (2, 1), (3, 1)]
    assert "--device /dev/infiniband" in kinds["train"]["docker"]["worker_run_options"]
    assert all("NetworkInterfaces" not in kinds[name]["node_config"] for name in ("head", "generate"))


def launched(cluster: dict[str, Any], bundles: list[dict[str, float]], together: bool) -> dict[str, int]:
    """The nodes that Ray's autoscaler starts for resource requests, and whether it can satisfy all of them."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import GangResourceRequest

    settings = AutoscalingConfig(prepared(cluster), skip_content_hash=True)
    requests = [ResourceRequestUtil.make(bundle) for bundle in bundles]
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=settings.get_node_type_configs(),
            max_num_nodes=settings.get_max_num_worker_nodes(),
            resource_requests=[] if together else ResourceRequestUtil.group_by_count(requests),
            gang_resource_requests=[GangResourceRequest(requests=requests)] if together else [],
        )
    )
    assert not reply.infeasible_resource_requests
    assert not reply.infeasible_gang_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def requests_of(resources: config.Resources) -> list[dict[str, float]]:
    bundle = {"CPU": resources.cpus, "GPU": resources.gpus}
    if resources.accelerator_type:
        bundle[f"accelerator_type:{resources.accelerator_type}"] = 0.001
    return [bundle] * resources.replicas


def test_the_autoscaler_starts_the_node_type_that_each_stage_requests():
    """Ray's own scheduler receives the resource requests of the shipped configuration with the cluster's overrides."""
    cluster = load("cluster.yaml")
    settings = config.load(ROOT / "configs/llava-1.5-13b.yaml", settings_in(read("docs/operations.md"), "cluster"))
    assert launched(cluster, requests_of(settings.train.resources), together=True) == {"train": 1}
    assert launched(cluster, requests_of(settings.generate.resources), together=False) == {"generate": 4}
    assert launched(cluster, requests_of(settings.score.resources), together=False) == {"generate": 1}
    # The project's own capacity check, made before a stage waits for nodes, uses the same limits.
    kinds = {"any": "head"}
    assert max_replicas(settings.train.resources, kinds, prepared(cluster)) == settings.train.resources.replicas
    assert max_replicas(settings.generate.resources, kinds, prepared(cluster)) == settings.generate.resources.replicas


# --- the image ---


def instructions() -> list[list[str]]:
    """The Dockerfile's instructions, split into words, with continued lines joined and comments removed."""
    lines = [line for line in read("Dockerfile").splitlines() if not line.startswith("#")]
    return [line.split() for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def test_hadolint_finds_nothing_in_the_dockerfile():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_pinned_and_its_packages_are_locked():
    bases = [words[1] for words in instructions() if words[0] == "FROM"]
    assert len(set(bases)) == 1, "the environment is moved from one stage to the other"
    version = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+", bases[0])[1]
    assert version in {"3.11", "3.12"}
    text = read("Dockerfile")
    assert re.search(r"uv==\d+\.\d+\.\d+\b", text)
    assert "uv sync --frozen --no-dev" in text
    assert not [words for words in instructions() if words[0] == "ADD"]


def test_the_container_runs_as_the_user_that_the_cluster_files_expect():
    users = [words[1] for words in instructions() if words[0] == "USER"]
    assert users[-1] == f"{USER}:{USER}"
    assert f"--uid {USER} " in read("Dockerfile")
    home = re.search(r"HOME=(\S+)", read("Dockerfile"))[1]
    for name in CLUSTERS:
        assert all(mount.startswith(f"{home}/") for mount in load(name)["file_mounts"])
    assert f"-o {USER} -g {USER} " in " ".join(load("cluster.yaml")["initialization_commands"])


def test_the_build_context_contains_only_the_inputs_of_the_image():
    rules = [rule for rule in read(".dockerignore").splitlines() if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        source
        for words in instructions()
        if words[0] == "COPY" and not words[1].startswith("--from")
        for source in words[1:-1]
    }
    wheel = tomllib.loads(read("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert copied | set(wheel) | {"pyproject.toml", "LICENSE", "README.md"} <= allowed
    assert all((ROOT / source).exists() for source in copied)


def test_the_wheel_contains_every_package_that_a_node_imports():
    packages = {name for name in ("jsfree", "ray_jobs", "serve") if (ROOT / name / "__init__.py").exists()}
    wheel = tomllib.loads(read("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages <= set(wheel)


def test_the_image_and_the_guide_install_the_locked_aws_packages():
    extra = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]["aws"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in extra}
    assert names == {"boto3", "s3fs"}
    assert names <= set(LOCK), "run `uv lock`"
    for name in ("Dockerfile", "docs/operations.md"):
        assert re.search(r"uv sync --frozen .*--extra aws\b", read(name)), name


def test_versions_agree_everywhere():
    for name in (*CLUSTERS, *MANIFESTS, "Dockerfile", "docs/operations.md"):
        assert set(re.findall(r"/jsfree:([\w.-]*\w)", read(name))) == {TAG}, name
    for name in MANIFESTS:
        assert re.findall(r'rayVersion: "(.*)"', read(name)) == [LOCK["ray"]], name
    import ray

    assert ray.__version__ == LOCK["ray"]


# --- the guide ---


def settings_in(text: str, heading: str = "") -> list[str]:
    """The ``--set`` arguments in a page: all of them, or those of the first code block after ``<!-- heading -->``."""
    if heading:
        text = text.partition(f"<!-- {heading} -->")[2].split("```")[1]
    return re.findall(r"--set ([\w.]+=[^\s`\\]+)", text)


def test_the_guide_shows_settings_and_files_that_exist():
    text = read("docs/operations.md")
    shown = settings_in(text)
    assert len(shown) > 5
    config.load(ROOT / "configs/llava-1.5-13b.yaml", shown)
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        config.build(yaml.safe_load(block), where="docs/operations.md")
    files = set(re.findall(r"`((?:deploy|configs|docs|ray_jobs)/[\w./-]+\.\w+|cluster\.yaml|Dockerfile)`", text))
    assert files
    assert {name for name in files if not (ROOT / name).exists()} <= {"docs/data.md", "docs/first-run.md"}
