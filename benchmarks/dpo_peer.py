"""TRL's DPOTrainer on the very pairs, order and learning rates of ours, for ``dpo.py``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from jsfree import prompts
from jsfree.models import Captioner
from jsfree.schemas import SelectedPair


def trainer(
    policy: Path,
    captioner: Captioner,
    pairs: Sequence[SelectedPair],
    images: Sequence[Any],
    micro: int,
    step: int,
    rate: Callable[[int], float],
    settings: Any,
    output: Path,
    after: Callable[[], None] = lambda: None,
) -> Any:
    """A trainer that takes ``pairs`` in their order, ``step`` of them an optimizer step; its figures as it goes on.

    The vision tower is frozen, as ours; the reference is a second model in memory, as TRL has it for images.
    """
    from datasets import Dataset
    from transformers import LlavaForConditionalGeneration, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    models = [LlavaForConditionalGeneration.from_pretrained(policy, dtype=torch.float32) for _ in range(2)]
    models[0].model.vision_tower.requires_grad_(False)
    begin = captioner.processor.tokenizer.bos_token  # the trainer adds none
    rows = [
        {
            "images": [image],
            "prompt": begin + prompts.conditional_prompt(captioner.processor, pair["prompt"]),
            "chosen": captioner.processor.tokenizer.decode(pair["chosen"]["token_ids"]),
            "rejected": captioner.processor.tokenizer.decode(pair["rejected"]["token_ids"]),
        }
        for pair, image in zip(pairs, images, strict=True)
    ]
    config = DPOConfig(
        output_dir=str(output),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=step // micro,
        num_train_epochs=1,
        beta=settings.beta,
        max_grad_norm=settings.max_grad_norm,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    parameters = [weight for weight in models[0].parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: rate(at) / settings.learning_rate)
    seen: dict[str, list[float]] = {"seconds": [], "loss": []}

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen["seconds"].append(time.process_time())
            after()

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                seen["loss"].append(logs["loss"])

    made = DPOTrainer(
        model=models[0],
        ref_model=models[1],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=captioner.processor,
        optimizers=(optimizer, schedule),
        callbacks=[Watch()],
    )
    made.seen = seen
    return made
