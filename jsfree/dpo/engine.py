"""DeepSpeed around the policy: what is trained, with which optimizer, sharded how."""

from __future__ import annotations

import os
from typing import Any

import torch

from jsfree.config import RunConfig
from jsfree.dpo.lora import add_adapters
from jsfree.dpo.policy import FLEX, PairModel
from jsfree.dpo.trained import trained_names
from jsfree.errors import ModelError
from jsfree.models.loading import Captioner
from jsfree.models.saving import hub_key


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
        "zero_optimization": {
            "stage": train.zero_stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            **({} if train.offload == "none" else {"offload_optimizer": {"device": "cpu"}}),
            **({"offload_param": {"device": "cpu"}} if train.offload == "all" else {}),
        },
        "zero_force_ds_cpu_optimizer": False,  # an offloaded optimizer is torch's too
        # torch's AdamW needs no compiler on the nodes, where DeepSpeed's own is built at the first start. It is on
        # DeepSpeed's list of optimizers for ZeRO (0.19.8); should it leave that list, this lets it pass.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }


def start_engine(captioner: Captioner, config: RunConfig, world: int) -> Any:
    """Freeze what is not trained and hand the model to DeepSpeed; torch.distributed must be initialised.

    Returns:
        The engine: a call with a ``PairBatch`` gives ``PairLogps``.

    Raises:
        ConfigError, ModelError: as in ``prepare_policy``.
    """
    on_cpu = captioner.device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if on_cpu:
        # Its shared-memory collectives would need a compiler on the node; gloo serves as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = prepare_policy(captioner, config)
    optimizer = adamw(model, config, fused=not on_cpu)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(config, world))
    return engine


def prepare_policy(captioner: Captioner, config: RunConfig) -> PairModel:
    """Set a captioner's model up for training as ``config.train`` says, and wrap it; needs no DeepSpeed.

    The model is changed in place: adapters or frozen parameters, gradient checkpointing, attention.

    Raises:
        ConfigError: ``trained_layers`` exceeds the model's layers, or ``lora.targets`` names a layer it does not have.
        ModelError: gradients cannot be checkpointed, because the model has dropout.
    """
    if config.train.lora is not None:
        add_adapters(captioner.model, config.train.lora)
    else:
        freeze(captioner.model, config.train.trained_layers)
    if config.train.gradient_checkpointing:
        checkpoint_gradients(captioner.model)
    if config.train.attention == "flex":
        captioner.model.set_attn_implementation({"text_config": FLEX})
    return PairModel(captioner.model)


def adamw(model: torch.nn.Module, config: RunConfig, *, fused: bool) -> torch.optim.AdamW:
    """The optimizer of the trained parameters; ``fused`` is torch's own kernel, built into its package."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained, lr=config.train.learning_rate, weight_decay=config.train.weight_decay, fused=fused
    )


def freeze(model: torch.nn.Module, trained_layers: int | None) -> None:
    """Let gradients flow into the trained parameters alone."""
    parameters = {hub_key(name): parameter for name, parameter in model.named_parameters()}
    trained = trained_names(parameters, trained_layers)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)


def checkpoint_gradients(model: Any) -> None:
    """Compute activations again in the backward pass instead of keeping them.

    transformers heeds this in training mode only, which dropout would make another model than the reference.

    Raises:
        ModelError: the model has dropout.
    """
    dropout = {
        f"{part}.{name}": value
        for part, settings in (("text_config", model.config.text_config), ("vision_config", model.config.vision_config))
        for name, value in settings.to_dict().items()
        if name.endswith("dropout") and value
    }
    if dropout:
        raise ModelError(
            f"train.gradient_checkpointing needs a captioner without dropout, but its config.json has {dropout};"
            " set it to 0 there, or gradient_checkpointing: false"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()


def gathered_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The whole captioner's weights, from every rank's shard under ZeRO-3; every rank must call, rank 0 gets them."""
    sharded = engine.zero_optimization_stage() == 3
    weights = engine._zero3_consolidated_16bit_state_dict() if sharded else engine.module.state_dict()
    return {name.removeprefix("llava."): tensor for name, tensor in (weights or {}).items()}
