"""A captioner of each family, with the structure of its published chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from jsfree.models.loading import Captioner
from tests.support.families.parts import HEAD_WIDTH, LAYERS, SPREAD, WIDTH, captioner_of, text_sizes, tower_sizes
from tests.support.families.templates import (
    CHAT,
    GEMMA_TEMPLATE,
    IDEFICS_TEMPLATE,
    LLAVA_TEMPLATE,
    QWEN_SYSTEM,
    chatml,
)
from tests.support.families.tokenizer import tokenizer_of

GRIDS = [[16, 32], [32, 16], [32, 32], [16, 48]]
"""Resolutions (height, width) of the tiles together, for tiles of 16 pixels."""


def llava_clip() -> Captioner:
    """LLaVA-1.5: a CLIP tower with a class token, which is dropped."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tokenizer_of({"image_token": "<image>"}, begin="<s>")
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower_sizes(32, 8), projection_dim=32),
        text_config=LlamaConfig(**text_sizes(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return captioner_of(LlavaForConditionalGeneration, config, processor)


def llava_siglip() -> Captioner:
    """LLaVA-Interleave: a SigLIP tower without a class token, and a Qwen2 model."""
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        Qwen2Config,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    tokenizer = tokenizer_of({"image_token": "<image>"}, CHAT)
    processor = LlavaProcessor(
        SiglipImageProcessor(size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=chatml("<image>\n"),
    )
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**tower_sizes(32, 8), vision_use_head=False),
        text_config=Qwen2Config(**text_sizes(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    return captioner_of(LlavaForConditionalGeneration, config, processor)


def internvl() -> Captioner:
    """InternVL3: 64 patches, of which the shuffle makes 16 tokens, and a Qwen2 model."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )

    special = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = tokenizer_of(special, CHAT)
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size={"height": 64, "width": 64}),
        tokenizer,
        InternVLVideoProcessor(),
        image_seq_length=16,
        chat_template=chatml("<IMG_CONTEXT>\n"),
    )
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**{**tower_sizes(64, 8), "image_size": [64, 64], "patch_size": [8, 8]}),
        text_config=Qwen2Config(**text_sizes(tokenizer)),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return captioner_of(InternVLForConditionalGeneration, config, processor)


def llava_next() -> Captioner:
    """LLaVA-NeXT: tiles of 16 patches, with a Mistral model without a window."""
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        MistralConfig,
    )

    tokenizer = tokenizer_of({"image_token": "<image>"}, begin="<s>")
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=GRIDS
        ),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**tower_sizes(16, 4), projection_dim=32),
        text_config=MistralConfig(**text_sizes(tokenizer), sliding_window=None),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=GRIDS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return captioner_of(LlavaNextForConditionalGeneration, config, processor)


def llava_onevision(tiles: int = 2, grids: Sequence[Sequence[int]] = GRIDS) -> Captioner:
    """LLaVA-OneVision: a SigLIP tower; features beyond a number of tiles are scaled down.

    Args:
        tiles: that number; published models have 9.
        grids: heights and widths into which images are tiled.
    """
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = tokenizer_of({"image_token": "<image>", "video_token": "<video>"}, CHAT)
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size={"height": 16, "width": 16}, image_grid_pinpoints=grids),
        tokenizer,
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{tiles}",
        chat_template=chatml("<image>\n"),
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**tower_sizes(16, 4), vision_use_head=False),
        text_config=Qwen2Config(**text_sizes(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=grids,
        vision_aspect_ratio=f"anyres_max_{tiles}",
        tie_word_embeddings=False,
    )
    return captioner_of(LlavaOnevisionForConditionalGeneration, config, processor)


def _qwen_processor(processor_class: Any, patch: int) -> Any:
    """A processor for images of 4 to 36 tokens, each of 2 x 2 patches."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    special = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    side = 2 * patch
    return processor_class(
        Qwen2VLImageProcessor(
            patch_size=patch,
            merge_size=2,
            temporal_patch_size=2,
            size={"shortest_edge": 4 * side**2, "longest_edge": 36 * side**2},
        ),
        tokenizer_of(special, CHAT),
        Qwen2VLVideoProcessor(patch_size=patch),
        chat_template=chatml("<|vision_start|><|image_pad|><|vision_end|>", QWEN_SYSTEM),
    )


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def _qwen_text(tokenizer: Any, **further: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6], **further}
    return {**text_sizes(tokenizer), "bos_token_id": None, "rope_parameters": rope}


def qwen2_vl() -> Captioner:
    """Qwen2-VL."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    processor = _qwen_processor(Qwen2VLProcessor, 4)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 4}
    config = Qwen2VLConfig(
        vision_config=vision, text_config=_qwen_text(processor.tokenizer), **_qwen_ids(processor.tokenizer)
    )
    return captioner_of(Qwen2VLForConditionalGeneration, config, processor)


def qwen2_5_vl() -> Captioner:
    """Qwen2.5-VL: windows of 2 x 2 tokens in the first layer of the tower."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    processor = _qwen_processor(Qwen2_5_VLProcessor, 4)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": WIDTH,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config=_qwen_text(processor.tokenizer), **_qwen_ids(processor.tokenizer)
    )
    return captioner_of(Qwen2_5_VLForConditionalGeneration, config, processor)


def qwen3_vl() -> Captioner:
    """Qwen3-VL: features of two further layers of the tower are added after the first two layers."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    processor = _qwen_processor(Qwen3VLProcessor, 4)
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": WIDTH,
        "num_heads": 2,
        "patch_size": 4,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {**_qwen_text(processor.tokenizer, mrope_interleaved=True), "head_dim": HEAD_WIDTH}
    config = Qwen3VLConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=True, **_qwen_ids(processor.tokenizer)
    )
    return captioner_of(Qwen3VLForConditionalGeneration, config, processor)


def gemma3(window: int = 128) -> Captioner:
    """Gemma 3: images of 16 tokens; one layer with a window (tokens), one without."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    special = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = tokenizer_of(special, ("<start_of_turn>", "<end_of_turn>"), begin="<bos>")
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 32, "width": 32}, image_seq_length=16),
        tokenizer,
        image_seq_length=16,
        chat_template=GEMMA_TEMPLATE,
    )
    text = Gemma3TextConfig(
        **text_sizes(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        head_dim=HEAD_WIDTH,
        query_pre_attn_scalar=HEAD_WIDTH,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention"][:LAYERS],
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=SiglipVisionConfig(**tower_sizes(32, 4), vision_use_head=False),
        mm_tokens_per_image=16,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        initializer_range=SPREAD,
    )
    captioner = captioner_of(Gemma3ForConditionalGeneration, config, processor)
    language = captioner.language_model
    with torch.no_grad():
        # The embeddings are the head's too, and scaled up by the root of the width: each token would predict itself.
        language.embed_tokens.weight /= WIDTH**0.5
        language.norm.weight += WIDTH**0.5 - 1
    return captioner


def _idefics_tokenizer() -> Any:
    rows = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    marks = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    return tokenizer_of({"image_token": "<image>", "video_token": "<video>"}, (*marks, *rows, *CHAT))


def _idefics_sizes(tokenizer: Any) -> dict[str, Any]:
    """Arguments of the configuration: 64 patches, of which the connector makes 16 tokens."""
    from transformers import LlamaConfig

    return {
        "vision_config": tower_sizes(32, 4),
        "text_config": LlamaConfig(**text_sizes(tokenizer)),
        "scale_factor": 2,
        "image_token_id": tokenizer.image_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }


def idefics3() -> Captioner:
    """Idefics3 with one tile."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    tokenizer = _idefics_tokenizer()
    processor = Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32}),
        tokenizer,
        image_seq_len=16,
        chat_template=IDEFICS_TEMPLATE,
    )
    return captioner_of(Idefics3ForConditionalGeneration, Idefics3Config(**_idefics_sizes(tokenizer)), processor)


def smolvlm() -> Captioner:
    """SmolVLM 2 with one tile."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokenizer = _idefics_tokenizer()
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    sampling = {"max_frames": 4, "fps": 1, "video_size": {"longest_edge": 32}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes),
        tokenizer,
        SmolVLMVideoProcessor(**sizes, video_sampling=sampling),
        image_seq_len=16,
        chat_template=IDEFICS_TEMPLATE,
    )
    return captioner_of(SmolVLMForConditionalGeneration, SmolVLMConfig(**_idefics_sizes(tokenizer)), processor)


BUILDERS: dict[str, Callable[[], Captioner]] = {
    "LLaVA (CLIP)": llava_clip,
    "LLaVA (SigLIP)": llava_siglip,
    "InternVL3": internvl,
    "LLaVA-NeXT": llava_next,
    "LLaVA-OneVision": llava_onevision,
    "Qwen2-VL": qwen2_vl,
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": qwen3_vl,
    "Gemma 3": gemma3,
    "Idefics3": idefics3,
    "SmolVLM 2": smolvlm,
}
"""What makes a captioner of each family, by its name."""
