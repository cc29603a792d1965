"""Log-probabilities of drawn tokens, against transformers' own forward over the prompt and the whole caption."""

import copy
from dataclasses import replace

import pytest
import torch

from jsfree.config import Contrast, Decoding
from jsfree.decoding import algorithm1
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.mixing import contrastive_mixing
from jsfree.decoding.requests import Caption, Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.miniworld import world
from jsfree.models.loading import Captioner
from tests.support.images import spoiled

DECODINGS = (Decoding(), Decoding(temperature=0), Decoding(temperature=0.5), Decoding(top_p=0.6), Decoding(top_k=3))


@pytest.fixture(scope="module")
def requests(captioner) -> list[Request]:
    """Several captions of each image, over ratios and decoding settings; those of even number ask for logps."""
    pixels = [captioner.inputs(world.draw(world.scene("development", index))) for index in range(4)]
    return [
        Request(
            f"{number}",
            pixels[number % 4],
            world.PROMPT,
            (0.0, 0.3, 1.0)[number % 3],
            noise_key(0, 1, str(number), "low"),
            DECODINGS[number % 5].model_copy(update={"max_new_tokens": 5 + number}),
            with_logps=number % 2 == 0,
        )
        for number in range(20)
    ]


@pytest.fixture(scope="module")
def exact(captioner) -> Captioner:
    """The captioner in float64."""
    return replace(captioner, model=copy.deepcopy(captioner.model).double())


@torch.inference_mode()
def expected_logps(exact: Captioner, request: Request, caption: Caption, *, image: bool = True) -> list[float]:
    """Log-probabilities by one forward over prompt and caption, in float64."""
    prompt = exact.prompt_ids(request.prompt, request.image if image else None)
    ids = torch.tensor([[*prompt, *caption.token_ids]])
    pixels = request.image.tensors["pixel_values"].double() if image else None
    logits = exact.model(input_ids=ids, pixel_values=pixels).logits[0, len(prompt) - 1 : -1]
    logits[:, list(exact.suppressed_ids)] = -torch.inf
    return torch.log_softmax(logits, -1)[range(len(caption.token_ids)), caption.token_ids].tolist()


@pytest.mark.parametrize("slots", [3, 20])
def test_logps_are_those_of_one_forward_over_the_caption_and_change_no_token(captioner, exact, requests, slots):
    captions = DualPathEngine(captioner, Workload(slots)).decode(requests)
    plain = DualPathEngine(captioner, Workload(slots)).decode([replace(each, with_logps=False) for each in requests])
    assert [replace(caption, logps=None, unconditional_logps=None) for caption in captions] == plain
    for request, caption in zip(requests, captions, strict=True):
        if request.with_logps:
            assert caption.logps == pytest.approx(expected_logps(exact, request, caption), abs=1e-4)
        else:
            assert caption.logps is None


def test_algorithm_1_computes_the_same_logps(captioner, exact, requests):
    for request in requests[:8]:
        caption = algorithm1.decode(captioner, request)
        expected = expected_logps(exact, request, caption) if request.with_logps else None
        assert caption.logps == (expected and pytest.approx(expected, abs=1e-4))


@pytest.mark.parametrize("decode", ["engine", "algorithm 1"])
def test_captions_with_two_paths_have_the_logps_of_both(captioner, exact, requests, decode):
    if decode == "engine":
        captions = DualPathEngine(captioner, Workload(6)).decode(requests)
    else:
        captions = [algorithm1.decode(captioner, request) for request in requests[:8]]
    for request, caption in zip(requests, captions, strict=False):
        if request.with_logps and request.ratio > 0:
            expected = expected_logps(exact, request, caption, image=False)
            assert caption.unconditional_logps == pytest.approx(expected, abs=1e-4)
        else:
            assert caption.unconditional_logps is None


def test_a_second_path_that_sees_a_noised_image_is_not_unconditional(captioner, requests):
    engine = DualPathEngine(captioner, Workload(4, mixing=contrastive_mixing(Contrast(kind="vcd"))))
    assert all(caption.unconditional_logps is None for caption in engine.decode(requests[:4]))


def test_a_contrastive_baseline_has_the_logps_of_its_conditional_path(captioner, exact, requests):
    engine = DualPathEngine(captioner, Workload(4, mixing=contrastive_mixing(Contrast(kind="vcd"))))
    for request, caption in zip(requests[::2], engine.decode(requests[::2]), strict=True):
        assert caption.logps == pytest.approx(expected_logps(exact, request, caption), abs=1e-4)


def test_at_h_1_only_a_request_for_logps_reads_the_image(captioner, requests, monkeypatch):
    engine, prefilled = DualPathEngine(captioner, Workload(2)), []
    real = engine._prefill._run
    monkeypatch.setattr(engine._prefill, "_run", lambda ids, images: prefilled.append(images) or real(ids, images))
    request = replace(requests[2], with_logps=False)
    assert request.ratio == 1
    engine.decode([request])
    assert prefilled == [[]]
    engine.decode([replace(request, with_logps=True)])
    assert len(prefilled) == 2


def test_a_caption_without_logps_fails_and_leaves_no_nan_to_the_next_one(captioner, requests):
    """At h = 1, where the tokens do not depend on the image."""
    good, broken = requests[0], replace(requests[2], image=spoiled(requests[2].image))
    assert broken.ratio == 1
    engine = DualPathEngine(captioner, Workload(1))
    alone = engine.decode([good])
    engine.submit(broken)
    assert [request_id for request_id, _ in engine.step().failed] == [broken.request_id]
    assert engine.decode([good]) == alone
