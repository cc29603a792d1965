"""MiniWorld's LLaVA: a ``LlavaForConditionalGeneration`` on a frozen copy of CLIP's vision tower."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from jsfree.errors import ModelError
from jsfree.miniworld import world
from jsfree.pretraining.clip import PATCH, PIXEL_MEAN, PIXEL_STD, READ_LAYER
from jsfree.pretraining.languages import PLAIN, Language
from jsfree.pretraining.tokenizers import IMAGE_TOKEN, LLAVA_TEMPLATE, captioner_tokenizer

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

PATCHES = (world.SIZE // PATCH) ** 2
# open_clip's name -> transformers' name, inside one residual block.
BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def build_processor(language: Language = PLAIN) -> "LlavaProcessor":
    """LLaVA's processor for images of 64 x 64 pixels."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    image_processor = CLIPImageProcessor(
        size={"shortest_edge": world.SIZE},
        crop_size={"height": world.SIZE, "width": world.SIZE},
        image_mean=list(PIXEL_MEAN),
        image_std=list(PIXEL_STD),
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=captioner_tokenizer(language),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=LLAVA_TEMPLATE,
    )


def build_captioner(clip: Any, language: Language = PLAIN) -> "LlavaForConditionalGeneration":
    """A LLaVA with newly initialised projector and language model on a frozen copy of ``clip``'s vision tower.

    vLLM's CPU attention supports head size 32. The default ``initializer_range`` of 0.02 is too small at this width.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    visual, tokenizer = clip.visual, captioner_tokenizer(language)
    blocks = visual.transformer.resblocks
    vision = CLIPVisionConfig(
        hidden_size=visual.conv1.out_channels,
        intermediate_size=blocks[0].mlp.c_fc.out_features,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        image_size=world.SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=visual.proj.shape[1],
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=READ_LAYER,
        image_seq_length=PATCHES,
    )
    model = LlavaForConditionalGeneration(config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    copy_vision_tower(visual, model.model.vision_tower)
    return model


def copy_vision_tower(visual: Any, tower: nn.Module) -> None:
    """Copy the weights of open_clip's ``visual`` into ``tower`` (CLIPVisionModel) and freeze it.

    Raises:
        ModelError: the outputs of the two differ by more than rounding.
    """
    weights = vision_weights(visual)
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in tower.state_dict()) else ""
    tower.load_state_dict({prefix + name: tensor.clone() for name, tensor in weights.items()})
    tower.requires_grad_(False).eval()
    outputs: list[torch.Tensor] = []
    handle = visual.transformer.resblocks[READ_LAYER].register_forward_hook(lambda *call: outputs.append(call[2]))
    probe = torch.rand(2, 3, world.SIZE, world.SIZE) * 2 - 1
    with torch.no_grad():
        visual.eval()(probe)
        handle.remove()
        hidden = tower(probe, output_hidden_states=True).hidden_states[READ_LAYER]
    difference = float((hidden - outputs[0]).abs().max())
    if difference > 1e-4:
        raise ModelError(
            f"the copied vision tower differs from CLIP's by {difference:.1e}",
            "check BLOCK_NAMES against the versions of open_clip and transformers",
        )


def vision_weights(visual: Any) -> dict[str, torch.Tensor]:
    """Weights of open_clip's vision transformer under the names of transformers' CLIPVisionModel."""
    source = visual.state_dict()
    weights = {
        "embeddings.class_embedding": source["class_embedding"],
        "embeddings.position_embedding.weight": source["positional_embedding"],
        "embeddings.patch_embedding.weight": source["conv1.weight"],
    }
    for kind in ("weight", "bias"):
        weights[f"pre_layrnorm.{kind}"] = source[f"ln_pre.{kind}"]
        weights[f"post_layernorm.{kind}"] = source[f"ln_post.{kind}"]
        for layer in range(len(visual.transformer.resblocks)):
            block, target = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            for open_clip_name, name in BLOCK_NAMES.items():
                weights[f"{target}.{name}.{kind}"] = source[f"{block}.{open_clip_name}.{kind}"]
            parts = source[f"{block}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                weights[f"{target}.self_attn.{name}_proj.{kind}"] = part
    return weights
