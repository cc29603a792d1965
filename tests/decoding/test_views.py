"""Several views of an image: the engine against Algorithm 1 with views, translations, memory and refusals."""

from dataclasses import replace

import pytest
import torch

from jsfree import config as configuration
from jsfree.config import Contrast, Decoding, RunConfig, Views
from jsfree.decoding import algorithm1
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.memory import kv_size
from jsfree.decoding.mixing import MIXINGS, contrastive_mixing
from jsfree.decoding.requests import Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.views import translations, views_of
from jsfree.decoding.workload import Workload
from jsfree.errors import ConfigError
from jsfree.miniworld import world
from jsfree.models.families.base import ImageInputs

THREE, FIVE = Views(count=3, shift=4), Views(count=5)


@pytest.fixture(scope="module")
def request_of(captioner):
    pixels = [captioner.inputs(world.draw(world.scene("development", index))) for index in range(5)]

    def made(index: int, role: str, ratio: float, prompt: str = world.PROMPT, **decoding) -> Request:
        key = noise_key(0, 1, str(index), role)
        return Request(f"{index}/{role}", pixels[index % 5], prompt, ratio, key, Decoding(**decoding))

    return made


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("views", [THREE, FIVE], ids=["three", "five"])
def test_captions_are_those_of_algorithm_1_with_views(captioner, request_of, views, temperature):
    """Several captions an image, more than there are slots, with different prompts, and a caption with one view."""
    prompts = (world.PROMPT, "Describe the image in detail, please.")
    requests = [
        request_of(index, role, ratio, prompts[index % 2], temperature=temperature, views=views, max_new_tokens=6)
        for index in range(3)
        for role, ratio in (("low", 0.0), ("high", 0.3), ("blind", 1.0))
    ]
    single = replace(requests[4], decoding=requests[4].decoding.model_copy(update={"views": Views()}), request_id="one")
    requests.insert(4, single)
    literal = [algorithm1.decode(captioner, each) for each in requests]
    for workload in (Workload(4, views=views.count), Workload(16, captions_per_image=3, prompts=1, views=5)):
        assert DualPathEngine(captioner, workload).decode(requests) == literal


@pytest.mark.parametrize("cut", [{"top_p": 0.7}, {"top_k": 3, "temperature": 1.4}, {"temperature": 0.5}])
def test_views_are_truncated_before_they_are_averaged(captioner, request_of, cut):
    requests = [
        request_of(index, "low", 0.3 * (index % 2), views=THREE, max_new_tokens=10, **cut) for index in range(4)
    ]
    literal = [algorithm1.decode(captioner, each) for each in requests]
    assert DualPathEngine(captioner, Workload(3, views=3)).decode(requests) == literal


def test_views_change_captions_and_an_engine_with_rows_for_them_decodes_one_view_as_before(captioner, request_of):
    requests = [request_of(index, "low", 0.0, max_new_tokens=24) for index in range(5)]
    several = [replace(each, decoding=each.decoding.model_copy(update={"views": FIVE})) for each in requests]
    alone = DualPathEngine(captioner, Workload(5)).decode(requests)
    engine = DualPathEngine(captioner, Workload(5, views=5))
    assert engine.decode(requests) == alone
    assert engine.decode(several) != alone


def test_log_probabilities_are_of_the_mean_over_views(captioner, request_of):
    requests = [
        replace(request_of(index, "low", 0.5 * (index % 3), views=THREE, max_new_tokens=8), with_logps=True)
        for index in range(3)
    ]
    for request, caption in zip(
        requests, DualPathEngine(captioner, Workload(3, views=3)).decode(requests), strict=True
    ):
        expected = torch.zeros(len(caption.token_ids), dtype=torch.float64)
        for view in views_of(captioner, request.image, THREE):
            expected += probabilities(captioner, view, request.prompt, caption.token_ids) / 3
        assert caption.logps == pytest.approx(expected.log().tolist(), abs=1e-4)


@torch.inference_mode()
def probabilities(captioner, image: ImageInputs, prompt: str, tokens: tuple[int, ...]) -> torch.Tensor:
    """Probability of each token by transformers' own forward."""
    start = captioner.prompt_ids(prompt, captioner.blank)
    output = captioner.model(input_ids=torch.tensor([[*start, *tokens]]), pixel_values=image.tensors["pixel_values"])
    logits = output.logits[0, len(start) - 1 : -1].double()
    logits[:, list(captioner.suppressed_ids)] = -torch.inf
    return torch.softmax(logits, -1)[range(len(tokens)), tokens]


def test_each_view_is_prefilled_once_for_all_captions_of_an_image(captioner, request_of, monkeypatch):
    engine, prefilled = DualPathEngine(captioner, Workload(6, captions_per_image=3, views=3)), []
    real = engine._prefill._run
    monkeypatch.setattr(engine._prefill, "_run", lambda ids, images: prefilled.append(images) or real(ids, images))
    engine.decode(
        [request_of(index, f"{n}", 0.0, views=THREE, max_new_tokens=5 + n) for index in range(4) for n in range(3)]
    )
    assert [len(images) for images in prefilled] == [3] * 4


def test_the_memory_of_views_is_as_predicted(captioner, request_of):
    engine = DualPathEngine(captioner, Workload(8, dual_path_share=0.5, prompts=1, views=3))
    engine.decode([request_of(0, "low", 0.0, views=THREE, max_new_tokens=32)])
    image_prefix, text_prefix = (len(captioner.prompt_ids(world.PROMPT, image)) for image in (captioner.blank, None))
    tokens = 3 * 7 * image_prefix + text_prefix + (3 * 8 + 4) * 32
    assert engine.layout.bytes == tokens * kv_size(captioner).token_bytes
    layer = engine._batch.forward.cache._layers[0]
    stored = (layer.keys, layer.values, layer.image_keys, layer.image_values, layer.text_keys, layer.text_values)
    layers = captioner.model.config.get_text_config().num_hidden_layers
    assert layers * sum(each.nbytes for each in stored) == engine.layout.bytes


def test_views_are_different_translations_within_the_shift_and_the_first_is_the_image():
    for count, shift in ((1, 1), (3, 6), (5, 6), (5, 3), (9, 1), (20, 14)):
        found = translations(Views(count=count, shift=shift))
        assert found[0] == (0, 0)
        assert len(set(found)) == len(found) == count
        assert all(abs(x) <= shift and abs(y) <= shift for x, y in found)
        assert found[: count - 1] == translations(Views(count=max(count - 1, 1), shift=shift))[: count - 1]


def test_a_view_is_the_image_moved_with_its_edge_repeated(captioner):
    pixels = torch.arange(2 * 5 * 4, dtype=torch.float32).view(2, 5, 4)
    image, views = ImageInputs({"pixel_values": pixels[None]}, ""), Views(count=4, shift=3)
    for (x, y), moved in zip(translations(views), views_of(captioner, image, views), strict=True):
        (view,) = moved.tensors["pixel_values"]
        for row in range(5):
            for column in range(4):
                source = pixels[:, min(max(row - y, 0), 4), min(max(column - x, 0), 3)]
                assert torch.equal(view[:, row, column], source)


def test_more_views_than_the_engine_has_rows_for_are_refused(captioner, request_of):
    engine = DualPathEngine(captioner, Workload(2, views=3))
    with pytest.raises(ValueError, match="'0/low' has 5 views; the engine has rows for 3"):
        engine.submit(request_of(0, "low", 0.0, views=FIVE))
    for mixing in (MIXINGS["logit"], contrastive_mixing(Contrast(kind="m3id"))):
        with pytest.raises(ValueError, match="combines one view of the image, not 3"):
            Workload(2, mixing=mixing, views=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"evaluate": {"modes": {"vcd": {"contrast": {"kind": "vcd"}, "views": {"count": 3}}}}},
            r"evaluate\.modes\.vcd: 'contrast' is defined for one view of the image, but 'views\.count' is 3",
        ),
        (
            {"generate": {"mixing": "logit", "decoding": {"views": {"count": 3}}}},
            "generate: 'mixing: logit' is defined for one view",
        ),
        ({"generate": {"decoding": {"views": {"count": 10, "shift": 1}}}}, "a 'shift' of 1 gives 9 views"),
    ],
)
def test_settings_that_views_cannot_have_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        configuration.build(settings, where="test")


def test_one_view_changes_no_fingerprint_and_several_do():
    def fingerprint(**views) -> str:
        return configuration.build({"generate": {"decoding": {"views": views}}}, where="test").own_fingerprint

    assert fingerprint() == fingerprint(count=1) == RunConfig().own_fingerprint
    assert len({fingerprint(), fingerprint(count=3), fingerprint(count=3, shift=4)}) == 3
