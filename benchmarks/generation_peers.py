"""Baselines for ``generation.py``: transformers' guidance, VCD's two forward passes, plain ``generate``.

Each makes two captions an image, of a fixed length, from a model that never draws the end token.
"""

from __future__ import annotations

import torch
from random_llava import RandomCaptioner

RATIOS = (0.2, 0.6)


class Peers:
    """The baselines with one model, one set of images and one length; each returns the number of tokens."""

    def __init__(self, captioner: RandomCaptioner, images: int, length: int) -> None:
        self.captioner = captioner
        self.length = length
        self.pixels = captioner.batch(captioner.random_images(images))["pixel_values"]
        self.with_image = torch.tensor([captioner.prompt_ids("", captioner.blank)], device=captioner.device)
        self.without_image = torch.tensor([captioner.prompt_ids("", None)], device=captioner.device)

    def guidance_batched(self) -> int:
        """transformers' classifier-free guidance: it takes one h per call, so there is a call for each h."""
        return sum(self._generate(self.pixels, guidance_scale=1 - ratio) for ratio in RATIOS)

    def guidance_per_image(self) -> int:
        """The same if every image had its own h: a call for each caption."""
        images = [self.pixels[index : index + 1] for index in range(len(self.pixels))]
        return sum(self._generate(image, guidance_scale=1 - ratio) for ratio in RATIOS for image in images)

    def single_path(self) -> int:
        """``generate`` without any mixing, all captions in one batch."""
        return self._generate(self.pixels.repeat_interleave(len(RATIOS), 0))

    @torch.inference_mode()
    def two_forwards(self) -> int:
        """As VCD's code: two forward passes a step with separate caches; Eq. 3 with an h per row, in one batch."""
        from transformers import DynamicCache

        model, rows = self.captioner.model, len(self.pixels) * len(RATIOS)
        ratio_B1 = torch.tensor(RATIOS * len(self.pixels), device=self.captioner.device)[:, None]
        caches = DynamicCache(config=model.config.text_config), DynamicCache(config=model.config.text_config)
        pixels = self.pixels.repeat_interleave(len(RATIOS), 0)
        fed = self.with_image.expand(rows, -1), self.without_image.expand(rows, -1)
        for step in range(self.length):
            probs = [
                torch.softmax(
                    model(
                        input_ids=ids,
                        pixel_values=pixels if step == 0 and cache is caches[0] else None,
                        past_key_values=cache,
                        use_cache=True,
                        logits_to_keep=1,
                    ).logits[:, -1].float(),
                    -1,
                )
                for ids, cache in zip(fed, caches, strict=True)
            ]  # fmt: skip
            token_B1 = torch.multinomial(torch.lerp(probs[0], probs[1], ratio_B1), 1)
            fed = token_B1, token_B1
        return rows * self.length

    @torch.inference_mode()
    def _generate(self, pixels: torch.Tensor, **options: object) -> int:
        ids = self.with_image.expand(len(pixels), -1)
        if options:
            options["negative_prompt_ids"] = self.without_image.expand(len(pixels), -1)
        written = self.captioner.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            do_sample=True,
            top_k=0,
            max_new_tokens=self.length,
            min_new_tokens=self.length,
            pad_token_id=0,
            **options,
        )
        return int((written.shape[1] - ids.shape[1]) * len(pixels))
