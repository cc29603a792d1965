"""Checks before the runs of an ablation start, and the number of runs at a time."""

import pytest

from jsfree import config
from jsfree.config import Resources
from jsfree.errors import RunError
from jsfree.run.folder import Folder
from ray_jobs.ablation import running
from ray_jobs.ablation.running import parallel_runs, require_same_models


def test_changed_packaged_models_are_not_mixed_with_runs_of_the_earlier_ones(tmp_path, monkeypatch):
    folder, configs = Folder(str(tmp_path / "out")), [config.RunConfig()]
    weights = tmp_path / "weights"
    for name in ("captioner", "clip"):
        (weights / name).mkdir(parents=True)
        (weights / name / "model.safetensors").write_bytes(b"first")
    monkeypatch.setattr(running, "WEIGHTS", weights)
    for _ in range(2):
        require_same_models(folder, configs)
    (weights / "captioner" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(RunError, match=r"miniworld:captioner changed since the ablation was started.*with --out"):
        require_same_models(folder, configs)
    own = [config.build({"captioner": {"ref": "org/llava"}}, where="test")]
    require_same_models(folder, own)  # which do not use that model


@pytest.mark.parametrize(
    ("cells", "nodes", "expected"),
    [
        ({}, [{"CPU": 2}], 1),
        ({}, [{"CPU": 9}], 4),
        ({}, [{"CPU": 3}, {"CPU": 3}], 3),
        ({"train": {"resources": {"replicas": 4}}}, [{"CPU": 16}], 4),
        ({"generate": {"resources": {"gpus": 1}}}, [{"CPU": 64, "GPU": 8}], 4),
        ({"generate": {"resources": {"gpus": 1}}}, [{"CPU": 64}], 1),
    ],
)
def test_as_many_runs_at_a_time_as_the_nodes_hold(cells, nodes, expected):
    assert config.RunConfig().generate.resources == Resources(replicas=2, cpus=1)
    assert parallel_runs([config.RunConfig(), config.build(cells, where="test")], nodes) == expected
