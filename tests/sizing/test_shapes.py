"""LLaVA-1.5 in its real shapes on the meta device: parameters, names, tokens and memory match the published ones."""

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from jsfree import config
from jsfree.models.families.llava import hub_key, visual_tokens
from jsfree.models.loading import Captioner
from jsfree.models.references import WEIGHTS
from jsfree.sizing import footprint, shapes
from tests.support import ROOT

SMALL, LARGE = shapes.PUBLISHED.values()
CONFIGS = ROOT / "configs"
# The chat template of the llava-hf checkpoints renders one turn as: USER: <image>\n<text> ASSISTANT:
TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{{ ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PROMPT = "Describe image in detail."


@pytest.fixture(scope="module", params=list(shapes.PUBLISHED), ids=["7b", "13b"])
def built(request):
    """A published shape, and the model that transformers builds from it, without weights."""
    from transformers import LlavaForConditionalGeneration

    shape = shapes.PUBLISHED[request.param]
    with torch.device("meta"):
        return shape, LlavaForConditionalGeneration(shapes.llava_config(shape)).eval()


@pytest.fixture(scope="module")
def processor():
    """LLaVA-1.5's processor: CLIP's images at 336 px and a Llama tokenizer, here with a vocabulary of its own."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    return LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        llama_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def llama_tokenizer():
    """A tokenizer with Llama's rules (spaces and prefix ``▁``, byte fallback, ``<s>`` first) and LLaVA's ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["▁", "\n", "USER", ":", "ASSISTANT", "Describe", "image", "in", "detail", ".", "▁USER", "▁ASSISTANT"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    letters = sorted({letter for word in words for letter in word} - set(pieces))
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *letters])}
    merges = []
    for word in words:  # merges build each word letter by letter
        for end in range(1, len(word)):
            pair = (word[:end], word[end])
            if pair not in merges:
                merges.append(pair)
                vocabulary.setdefault(word[: end + 1], len(vocabulary))
    vocabulary |= {f"unused{number}": number for number in range(len(vocabulary), shapes.IMAGE_TOKEN_ID)}
    bpe = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens([AddedToken(name, normalized=False) for name in ("<image>", "<pad>")])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def test_the_models_have_as_many_parameters_as_published(built):
    shape, model = built
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == shapes.parameters(shape)
    assert counted == pytest.approx({SMALL: 7.06e9, LARGE: 13.35e9}[shape], rel=0.01)
    frozen = sum(parameter.numel() for parameter in model.model.vision_tower.parameters())
    assert frozen == pytest.approx(304e6, rel=0.01)
    assert footprint.parameters_of(shapes.tensors(shape), shape.family, None) == footprint.Parameters(
        counted, counted - frozen
    )


def test_tensor_names_and_shapes_match_the_hub(built):
    shape, model = built
    published = {hub_key(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert published == shapes.tensors(shape)
    # Names from the index file of the llava-hf checkpoints.
    assert {
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        f"language_model.model.layers.{shape.language.layers - 1}.self_attn.q_proj.weight",
        "language_model.model.norm.weight",
        "multi_modal_projector.linear_1.bias",
        "multi_modal_projector.linear_2.weight",
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vision_tower.vision_model.encoder.layers.23.mlp.fc2.bias",
        "vision_tower.vision_model.pre_layrnorm.weight",
        "vision_tower.vision_model.post_layernorm.weight",
    } <= set(published)
    layers, heads = shape.language.layers, shape.language.heads
    assert len(published) == 9 * layers + 3 + 16 * 24 + 7 + 4
    assert shape.language.head == shape.language.hidden // heads == 128


def test_the_shipped_weights_match_their_configuration():
    from transformers import LlavaConfig

    shape = shapes.shape_of(LlavaConfig.from_pretrained(WEIGHTS / "captioner"))
    with safe_open(WEIGHTS / "captioner" / "model.safetensors", "pt") as weights:
        held = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    assert held == shapes.tensors(shape)
    assert shape.image_tokens == 16


def test_names_and_sizes_are_derived_for_other_shapes():
    from transformers import LlavaForConditionalGeneration

    stack = shapes.TransformerShape
    shape = shapes.LlavaShape(
        stack(hidden=64, layers=3, heads=8, intermediate=96, kv_heads=2),
        stack(hidden=32, layers=2, heads=2, intermediate=48),
        vocabulary=32007,
        image_size=70,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(shapes.llava_config(shape))
    held = {hub_key(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert held == shapes.tensors(shape)
    assert shapes.shape_of(model.config) == shape
    assert shapes.kv_bytes_per_token(shape) == 2 * 3 * 2 * 8 * 2


def test_a_shape_is_recovered_from_its_configuration(built):
    shape, model = built
    assert shapes.shape_of(model.config) == shape


def test_an_image_becomes_576_vectors_of_the_language_model_width(built, processor):
    shape, model = built
    pixels = processor.image_processor(Image.new("RGB", (640, 480)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.get_image_features(pixel_values=pixels.to("meta"), return_dict=True).pooler_output
    assert [tuple(each.shape) for each in features] == [(576, shape.language.hidden)]
    assert shape.image_tokens == visual_tokens(model.config) == 576


def test_prompt_and_tokens_match_the_processor(built, processor):
    _, model = built
    captioner = Captioner(model, processor)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    assert text == f"USER: <image>\n{PROMPT} ASSISTANT:"
    [theirs] = processor(images=[Image.new("RGB", (50, 30))], text=[text]).input_ids
    ours = captioner.prompt_ids(PROMPT, captioner.blank)
    assert ours == theirs
    image = model.config.image_token_index
    assert image == processor.image_token_id == 32000
    assert processor.tokenizer.pad_token_id == model.config.text_config.pad_token_id == 32001
    first = ours.index(image)
    assert ours[first : first + 576] == [image] * 576
    assert ours.count(image) == 576
    before, after = ours[:first], ours[first + 576 :]
    assert before[0] == processor.tokenizer.bos_token_id
    assert processor.tokenizer.decode(before[1:]) == "USER: "
    assert processor.tokenizer.decode(after).strip(" ") == f"\n{PROMPT} ASSISTANT:"


def test_the_unconditional_prompt_omits_only_the_image_and_its_newline(built, processor):
    captioner = Captioner(built[1], processor)
    ids = captioner.prompt_ids(PROMPT, None)
    assert ids == processor.tokenizer(f"USER: {PROMPT} ASSISTANT:").input_ids
    assert processor.image_token_id not in ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == f"USER: {PROMPT} ASSISTANT:"


def test_the_bytes_of_a_cached_token_are_those_of_its_keys_and_values(built):
    shape, model = built
    text = model.config.text_config
    by_layer = 2 * text.num_key_value_heads * text.head_dim * torch.bfloat16.itemsize
    assert shapes.kv_bytes_per_token(shape) == by_layer * text.num_hidden_layers
    assert shapes.kv_bytes_per_token(LARGE) == 819_200


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_zero_shards_add_up_to_the_whole(gpus):
    """Bytes per parameter: 2 of weights, 2 of gradients, 12 of optimizer state and 6 during its step."""
    of = footprint.parameters_of(shapes.tensors(LARGE), LARGE.family, None)
    two, three = (footprint.gpu_bytes(of, stage, gpus, "bfloat16") for stage in (2, 3))
    assert gpus * three == pytest.approx(2 * of.total + 20 * of.trained, abs=gpus)
    assert two - three == pytest.approx(2 * of.total * (gpus - 1) / gpus, abs=2)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("llava-1.5-*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configs_fit_the_model_and_an_80_gb_gpu(path):
    settings = config.load(path)
    shape, gpu = shapes.PUBLISHED[settings.captioner.ref], 80e9
    assert settings.captioner.dtype == "bfloat16"
    longest = settings.generate.decoding.max_new_tokens
    assert shape.image_tokens + 64 + longest <= shape.context
    tokens = shape.image_tokens + 64 + longest + 64 + longest  # both paths of a caption
    kept = 16 * tokens * shapes.kv_bytes_per_token(shape)  # the engine uses as many slots as fit
    train = settings.train
    parameters = footprint.parameters_of(shapes.tensors(shape), shape.family, train.trained_layers)
    assert footprint.model_bytes(parameters, "bfloat16") + kept < 0.9 * gpu
    assert footprint.gpu_bytes(parameters, train.zero_stage, train.resources.replicas, "bfloat16") < 0.8 * gpu
