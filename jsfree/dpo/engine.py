"""DeepSpeed around the policy: trained parameters, optimizer, ZeRO sharding."""

from __future__ import annotations

import os
from typing import Any

import torch

from jsfree.config import RunConfig
from jsfree.dpo.lora import add_adapters
from jsfree.dpo.policy import FLEX, PairModel
from jsfree.dpo.trained import trained_names
from jsfree.errors import ModelError
from jsfree.models.families.registry import family_of
from jsfree.models.loading import Captioner


def deepspeed_config(config: RunConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's configuration, derived from the training settings, for ``world`` workers."""
    train = config.train
    pairs_a_worker = train.pairs_per_step // world
    micro = min(train.pairs_per_worker, pairs_a_worker)
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": pairs_a_worker // micro,
        "gradient_clipping": train.max_grad_norm,
        "bf16": {"enabled": config.captioner.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": train.zero_stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            **({} if train.offload == "none" else {"offload_optimizer": {"device": "cpu"}}),
            **({"offload_param": {"device": "cpu"}} if train.offload == "all" else {}),
        },
        # torch's AdamW, also where the optimizer is offloaded: DeepSpeed's own is compiled on the node at first use.
        "zero_force_ds_cpu_optimizer": False,
        # AdamW is on DeepSpeed's list of optimizers tested with ZeRO (0.19.8); this allows it if it leaves the list.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def start_engine(captioner: Captioner, config: RunConfig, world: int) -> Any:
    """Prepare the policy for training and wrap it in a DeepSpeed engine; torch.distributed must be initialised.

    Returns:
        The engine: maps a ``PairBatch`` to log-probabilities, as ``PairModel``.

    Raises:
        ConfigError, ModelError: as ``prepare_policy``.
    """
    on_cpu = captioner.device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if on_cpu:
        # DeepSpeed's shared-memory collectives need a compiler on the node; gloo does not.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = prepare_policy(captioner, config)
    optimizer = adamw(model, config, fused=not on_cpu)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(config, world))
    return engine


def prepare_policy(captioner: Captioner, config: RunConfig) -> PairModel:
    """Set up a captioner's model for training with ``config.train`` and wrap it. Does not need DeepSpeed.

    Changes the model in place: adapters or frozen parameters, gradient checkpointing, attention kernel.

    Raises:
        ConfigError: ``trained_layers`` exceeds the model's layers, or ``lora.targets`` names an unknown layer.
        ModelError: gradient checkpointing is on, but the model has dropout.
    """
    if config.train.lora is not None:
        add_adapters(captioner.model, config.train.lora)
    else:
        freeze_untrained(captioner.model, config.train.trained_layers)
    if config.train.gradient_checkpointing:
        enable_gradient_checkpointing(captioner.model)
    if config.train.attention == "flex":
        captioner.model.set_attn_implementation({"text_config": FLEX})
    return PairModel(captioner.model)


def adamw(model: torch.nn.Module, config: RunConfig, *, fused: bool) -> torch.optim.AdamW:
    """AdamW over the trained parameters; ``fused`` uses torch's built-in fused kernel."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained, lr=config.train.learning_rate, weight_decay=config.train.weight_decay, fused=fused
    )


def freeze_untrained(model: Any, trained_layers: int | None) -> None:
    """Set ``requires_grad`` for the trained parameters only; see ``trained_names``."""
    parameters = dict(model.named_parameters())
    trained = trained_names(parameters, family_of(model.config), trained_layers)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass instead of keeping them.

    transformers checkpoints in training mode only, where dropout would make the policy differ from the reference.

    Raises:
        ModelError: the model has dropout.
    """
    dropout = {
        f"{part}.{name}": value
        for part, settings in (
            ("text_config", model.config.get_text_config()),
            ("vision_config", model.config.vision_config),
        )
        for name, value in settings.to_dict().items()
        if name.endswith("dropout") and value
    }
    if dropout:
        raise ModelError(
            f"train.gradient_checkpointing needs a captioner without dropout, but its config.json has {dropout}",
            "set it to 0 there, or gradient_checkpointing: false",
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()


def gather_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The captioner's full state dict, gathered from all ranks under ZeRO-3.

    Every rank must call this; only rank 0 gets the weights.
    """
    sharded = engine.zero_optimization_stage() == 3
    weights = engine._zero3_consolidated_16bit_state_dict() if sharded else engine.module.state_dict()
    return {name.removeprefix("llava."): tensor for name, tensor in (weights or {}).items()}
