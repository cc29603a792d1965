"""DeepSpeed around the policy: what is trained, with which optimizer, sharded how."""

from __future__ import annotations

import os
from typing import Any

import torch

from jsfree.config import RunConfig
from jsfree.models import Captioner


def deepspeed_config(config: RunConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's dictionary, derived from the training settings."""
    train = config.train
    share = train.pairs_per_step // world
    micro = min(train.pairs_per_worker, share)
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": share // micro,
        "gradient_clipping": train.max_grad_norm,
        "bf16": {"enabled": config.captioner.dtype == "bfloat16"},
        "zero_optimization": {"stage": train.zero_stage, "stage3_gather_16bit_weights_on_model_save": True},
        # torch's AdamW needs no compiler on the nodes; DeepSpeed's own builds one at the first start.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def start_engine(captioner: Captioner, config: RunConfig, world: int) -> Any:
    """Freeze what is not trained and hand the model to DeepSpeed; torch.distributed must be initialised.

    The vision tower stays frozen; the projector and the language model are trained (paper, section 4.1).
    """
    on_cpu = captioner.device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if on_cpu:
        # Its shared-memory collectives would need a compiler on the node; gloo serves as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = captioner.model
    model.model.vision_tower.requires_grad_(requires_grad=False)
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.train.learning_rate, weight_decay=config.train.weight_decay, fused=not on_cpu
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(config, world))
    return engine


def gathered_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The whole model's weights, from every rank's shard under ZeRO-3; every rank must call."""
    if engine.zero_optimization_stage() == 3:
        weights: dict[str, torch.Tensor] = engine._zero3_consolidated_16bit_state_dict()
        return weights
    module: dict[str, torch.Tensor] = engine.module.state_dict()
    return module
