"""Replicas that fit on a node and on a cluster that has grown to its maximum, such as the shipped cluster.yaml."""

import pytest
import yaml

from jsfree.config import Resources
from ray_jobs.cluster.capacity import describe, has_no_autoscaler, inventory, max_replicas, replicas_on
from tests.support import ROOT

A100 = {"CPU": 96.0, "GPU": 8.0, "accelerator_type:A100": 1.0}
SHIPPED = yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.mark.parametrize(
    ("asked", "replicas"),
    [
        ({"gpus": 1}, 8),
        ({"gpus": 1, "cpus": 16}, 6),
        ({"gpus": 0.25}, 32),
        ({"gpus": 0.3}, 24),  # three to a GPU: a replica's fraction is of one GPU
        ({"gpus": 3}, 2),
        ({"gpus": 1, "accelerator_type": "A100"}, 8),
        ({"gpus": 1, "accelerator_type": "L4"}, 0),
        ({"cpus": 0.1}, 100),
        ({"cpus": 0}, 100),
    ],
)
def test_replicas_on_a_node_follow_from_their_resources(asked, replicas):
    assert replicas_on(A100, Resources(replicas=100, **asked)) == replicas


@pytest.mark.parametrize(
    ("asked", "most"),
    [
        ({"gpus": 1, "cpus": 8, "accelerator_type": "A100"}, 8),
        ({"gpus": 1, "cpus": 4, "accelerator_type": "L40S"}, 16),
        ({"gpus": 1, "cpus": 4}, 24),
        ({"gpus": 1, "accelerator_type": "H100"}, 0),
        ({"gpus": 8}, 1),
    ],
)
def test_the_shipped_cluster_grows_to_the_limits_in_its_file(asked, most):
    assert max_replicas(Resources(replicas=100, **asked), {"abc": "head"}, SHIPPED) == most


def test_an_unknown_maximum_is_none():
    asked = Resources(replicas=4, gpus=1)
    assert max_replicas(asked, {}, SHIPPED) is None  # no autoscaler has reported yet
    assert max_replicas(asked, {"abc": "head"}, {}) is None  # the driver is not on the head node
    assert max_replicas(asked, {"abc": "other"}, SHIPPED) is None  # the file is of another cluster
    assert has_no_autoscaler({"abc": "node_abc"})
    assert not has_no_autoscaler({"abc": "node_abc", "def": "head"})
    assert not has_no_autoscaler({})
    silent = {"head_node_type": "head", "available_node_types": {"head": {"resources": {"CPU": 1}}, "gpu": {}}}
    assert max_replicas(asked, {"abc": "head"}, silent) is None  # its resources are found out when it starts
    unnamed = {"gpu": {"resources": {"CPU": 8, "GPU": 4}, "max_workers": 2}}
    assert (
        max_replicas(Resources(gpus=1, accelerator_type="L4"), {"abc": "gpu"}, {"available_node_types": unnamed}) == 4
    )


def test_capacities_are_described():
    assert describe(Resources(cpus=4, gpus=0.25, accelerator_type="L4")) == "4 CPU + 0.25 GPU of type L4"
    assert inventory([A100, {"CPU": 4.0}]) == "2 nodes, 100 CPU, 8 GPU of type A100"
