"""One training worker in the tests' own process."""

from pathlib import Path

import pytest
import torch.distributed as dist

WORKER = {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


@pytest.fixture(scope="module")
def extensions(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("extensions")


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory, extensions):
    """A process group of this process alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**WORKER, "TORCH_EXTENSIONS_DIR": str(extensions)}.items():
            patch.setenv(name, value)
        store = tmp_path_factory.mktemp("store") / "file"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        import deepspeed

        if deepspeed.comm.is_initialized():  # it keeps the group, and the next module's would be another
            deepspeed.comm.destroy_process_group()
            deepspeed.comm.comm.cdb = None
        else:
            dist.destroy_process_group()
