"""TRL's DPOTrainer with the same pairs, order and learning rates as ours, for ``dpo.py``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jsfree.config import Train
from jsfree.models import prompts
from jsfree.models.loading import Captioner, load_captioner
from jsfree.schemas import SelectedPair


@dataclass
class Watch:
    """Records CPU time and loss after each step of TRL's trainer, and calls ``after``."""

    after: Callable[[], None] = lambda: None
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)

    def callback(self) -> Any:
        """The callback for the trainer."""
        from transformers import TrainerCallback

        class Watching(TrainerCallback):
            def on_step_end(_, *__: Any, **___: Any) -> None:  # noqa: N805 - self is the watch
                self.seconds.append(time.process_time())
                self.after()

            def on_log(_, *__: Any, logs: dict[str, float], **___: Any) -> None:  # noqa: N805
                if "loss" in logs:
                    self.loss.append(logs["loss"])

        return Watching()


def train(
    policy: Path,
    pairs: Sequence[SelectedPair],
    images: Sequence[Any],
    settings: Train,
    rate: Callable[[int], float],
    output: Path,
    watch: Watch,
) -> None:
    """Train on ``pairs`` in their order, ``settings.pairs_per_step`` of them an optimizer step.

    The vision tower is frozen, as in ours; the reference is a second model in memory, which TRL requires for images.
    """
    from datasets import Dataset
    from transformers import LlavaForConditionalGeneration
    from trl import DPOTrainer

    models = [LlavaForConditionalGeneration.from_pretrained(policy, dtype=torch.float32) for _ in range(2)]
    models[0].model.vision_tower.requires_grad_(False)
    parameters = [weight for weight in models[0].parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: rate(at) / settings.learning_rate)
    captioner = load_captioner(str(policy))
    rows = [row(captioner, pair, image) for pair, image in zip(pairs, images, strict=True)]
    DPOTrainer(
        model=models[0],
        ref_model=models[1],
        args=arguments(settings, output),
        train_dataset=Dataset.from_list(rows),
        processing_class=captioner.processor,
        optimizers=(optimizer, schedule),
        callbacks=[watch.callback()],
    ).train()


def row(captioner: Captioner, pair: SelectedPair, image: Any) -> dict[str, Any]:
    """A pair in TRL's format, with the begin token, which TRL adds to chats only."""
    tokenizer = captioner.processor.tokenizer
    return {
        "images": [image],
        "prompt": tokenizer.bos_token + prompts.conditional_prompt(captioner.processor, pair["prompt"]),
        "chosen": tokenizer.decode(pair["chosen"]["token_ids"]),
        "rejected": tokenizer.decode(pair["rejected"]["token_ids"]),
    }


def arguments(settings: Train, output: Path) -> Any:
    """TRL's configuration for our settings."""
    from trl import DPOConfig

    return DPOConfig(
        output_dir=str(output),
        per_device_train_batch_size=settings.pairs_per_worker,
        gradient_accumulation_steps=settings.pairs_per_step // settings.pairs_per_worker,
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
