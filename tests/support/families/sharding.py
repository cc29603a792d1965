"""One step of training by two workers under ZeRO-3, and the same step by one process without DeepSpeed.

The optimizer is plain SGD with a learning rate of 1, so a step subtracts the gradient from the weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jsfree.config import RunConfig, build
from jsfree.dpo.batching import PairBatch
from jsfree.models.loading import Captioner
from jsfree.schemas import Role
from tests.support.families.builders import BUILDERS
from tests.support.families.checks import PROMPT, picture

WORLD, PAIRS = 2, 4
GLOO = "gloo"


def settings() -> RunConfig:
    """Both workers' settings: a step of two pairs each, without clipping."""
    train = {"pairs_per_step": PAIRS, "pairs_per_worker": PAIRS // WORLD, "zero_stage": 3, "max_grad_norm": 1e9}
    return build({"train": {**train, "resources": {"replicas": WORLD}}}, where="test")


def batch_of(captioner: Captioner, rows: Sequence[int], images: Sequence[Any] | None = None) -> PairBatch:
    """Pairs of random captions of images of different sizes, or of features of these images."""
    from jsfree.dpo.batching import pack

    words = torch.randint(0, 300, (PAIRS, 2, 9), generator=torch.Generator().manual_seed(1)).tolist()
    captions: list[dict[Role, Sequence[int]]] = [
        {"chosen": words[row][0][: 5 + row], "rejected": words[row][1][: 9 - row]} for row in rows
    ]
    inputs = images or [captioner.inputs(picture(row)) for row in rows]
    return pack([captioner.prompt(PROMPT, image) for image in inputs], captions, inputs)


def loss_of(logps: dict[Role, torch.Tensor], rows: Sequence[int]) -> torch.Tensor:
    """A loss to which every pair contributes differently."""
    weights = torch.tensor([1.0 + row for row in rows])
    return (weights * (logps["rejected"] - logps["chosen"])).mean()


def by_one_process(name: str) -> dict[str, torch.Tensor]:
    """Weights after the step on all pairs."""
    from jsfree.dpo.engine import freeze_untrained
    from jsfree.dpo.policy import PairModel

    captioner = BUILDERS[name]()
    freeze_untrained(captioner.model, None)
    model = PairModel(captioner.model)
    loss = loss_of(model(batch_of(captioner, range(PAIRS))), range(PAIRS))
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
    return {key.removeprefix("llava."): tensor for key, tensor in model.state_dict().items()}


def by_two_workers(names: Sequence[str], folder: Path) -> None:
    """Write ``NAME.safetensors`` with the weights after a step, for the step with pixels and with cached features."""
    from torch.multiprocessing.spawn import spawn

    spawn(_work, (tuple(names), folder), nprocs=WORLD)  # type: ignore[no-untyped-call]


def file_of(folder: Path, name: str, cached: bool) -> Path:
    """The file of the weights after a step."""
    return folder / f"{name}{' from features' if cached else ''}.safetensors"


def _work(rank: int, names: Sequence[str], folder: Path) -> None:
    """One worker: a process of its own."""
    import torch.distributed as dist

    from jsfree.dpo import engine as dpo_engine

    torch.set_num_threads(1)
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    dist.init_process_group(GLOO, init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    plain = dpo_engine.deepspeed_config

    def sharded(config: RunConfig, world: int) -> dict[str, Any]:
        """Without a minimum size, under which DeepSpeed keeps parameters whole: all of a tiny model's."""
        written = plain(config, world)
        zero = {**written["zero_optimization"], "stage3_param_persistence_threshold": 0}
        return {**written, "zero_optimization": zero}

    dpo_engine.deepspeed_config = sharded
    dpo_engine.adamw = _sgd  # type: ignore[assignment]
    for name in names:
        for cached in (False, True):
            _step(name, rank, cached, folder)
    dist.destroy_process_group()


def _sgd(model: torch.nn.Module, *_: object, **__: object) -> torch.optim.SGD:
    return torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)


def _step(name: str, rank: int, cached: bool, folder: Path) -> None:
    from safetensors.torch import save_file

    from jsfree.dpo.engine import gather_weights, start_engine
    from jsfree.models.families.base import split_features

    captioner = BUILDERS[name]()
    engine = start_engine(captioner, settings(), WORLD)
    rows = list(range(PAIRS))[rank::WORLD]
    images = None
    if cached:
        inputs = [captioner.inputs(picture(row)) for row in rows]
        images = split_features(engine.module.vision_features(captioner.batch(inputs)), inputs)
    loss = loss_of(engine(batch_of(captioner, rows, images)), rows)
    engine.backward(loss)
    engine.step()
    weights = gather_weights(engine)
    if rank == 0:
        save_file({key: tensor.clone() for key, tensor in weights.items()}, file_of(folder, name, cached))
