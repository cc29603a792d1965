"""The engine against Algorithm 1, and against itself with other captions in the batch."""

import copy
import gc
import math
import random
import shutil
import weakref
from dataclasses import replace
from functools import cache

import pytest
import torch

from jsfree.config import Contrast, Decoding, Views
from jsfree.decoding import algorithm1
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.forward import Forward
from jsfree.decoding.memory import GIB, kv_size
from jsfree.decoding.mixing import MIXINGS, Mixing, contrastive_mixing
from jsfree.decoding.prefill import Prefill
from jsfree.decoding.requests import Caption, Request
from jsfree.decoding.sampling import noise_key
from jsfree.decoding.workload import Workload
from jsfree.errors import DecodingError, DeviceError
from jsfree.miniworld import world
from jsfree.models.loading import load_captioner
from tests.support.images import spoiled

PROMPT = "Describe image in detail."
GRID = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
SETTINGS = (
    Decoding(),
    Decoding(temperature=0.6),
    Decoding(top_p=0.8),
    Decoding(temperature=0),
    Decoding(top_k=5),
)


@pytest.fixture(scope="module")
def request_of(captioner):
    @cache
    def pixels(index: int) -> torch.Tensor:
        return captioner.inputs(world.draw(world.scene("development", index)))

    def made(index: int, role: str, ratio: float, decoding: Decoding) -> Request:
        key = noise_key(0, 1, str(index), role)
        return Request(f"{index}/{role}", pixels(index), PROMPT, ratio, key, decoding)

    return made


@pytest.fixture(scope="module")
def many(request_of) -> list[Request]:
    """520 requests as in a run: h = 0, and h drawn."""
    drawn = random.Random(0)
    ratios = [(role, 0.0 if role == "low" else drawn.uniform(0.1, 1)) for _ in range(260) for role in ("low", "high")]
    return [request_of(at // 2, role, ratio, Decoding()) for at, (role, ratio) in enumerate(ratios)]


@pytest.fixture(scope="module")
def alone(captioner, many) -> dict[str, Caption]:
    """Their captions by one engine with 16 slots."""
    return by_id(DualPathEngine(captioner, Workload(16, dual_path_share=0.5)).decode(many))


def by_id(captions: list[Caption]) -> dict[str, Caption]:
    return {caption.request_id: caption for caption in captions}


@pytest.mark.slow
@pytest.mark.parametrize("slots", [5, 48])
def test_engine_agrees_with_algorithm_1(captioner, literal_grid, slots):
    """Over 200 captions over a grid of ratios, temperatures, nuclei and lengths."""
    requests, literal = literal_grid
    assert DualPathEngine(captioner, Workload(slots)).decode(requests) == literal
    assert len(requests) >= 200
    assert {caption.finish for caption in literal} == {"stop", "length"}


@pytest.fixture(scope="module")
def literal_grid(captioner, request_of) -> tuple[list[Request], list[Caption]]:
    requests = [
        request_of(index, role, GRID[(index + shift) % len(GRID)], decoding)
        for index in range(102)
        for shift, role in ((0, "low"), (2, "high"))
        for decoding in [SETTINGS[index // 4 % 5].model_copy(update={"max_new_tokens": 40 if index % 4 == 0 else 8})]
    ]
    return requests, [algorithm1.decode(captioner, each) for each in requests]


@pytest.mark.slow
def test_a_caption_does_not_depend_on_order_batch_or_worker(captioner, many, alone):
    """520 equal captions, in another order by three engines."""
    shuffled = random.Random(1).sample(many, len(many))
    workers = [DualPathEngine(captioner, Workload(16, dual_path_share=0.5)) for _ in range(3)]
    captions: dict[str, Caption] = {}
    for number, start in enumerate(range(0, len(shuffled), 65)):
        captions |= by_id(workers[number % 3].decode(shuffled[start : start + 65]))
    assert captions == alone


@pytest.mark.slow
@pytest.mark.parametrize("slots", [7, 40])
def test_captions_hardly_depend_on_the_number_of_slots(captioner, many, alone, slots):
    captions = DualPathEngine(captioner, Workload(slots, dual_path_share=1.0)).decode(many)
    same = sum(caption == alone[caption.request_id] for caption in captions)
    assert same >= 0.999 * len(many)


def probs_apart(engine: DualPathEngine, literal, mixing: Mixing | None = None) -> list[float]:
    """Total variation of the engine's next-token distributions from Algorithm 1's, over some steps."""
    found = []
    for _ in range(12):
        engine.step()
        live = engine._batch.in_flight()
        with torch.inference_mode():
            probs = engine._batch.next_token_probs([slot for slot, _ in live])
        for row, (_, each) in zip(probs, live, strict=True):
            expected = algorithm1.next_token_probs(literal, each.request, each.tokens, mixing)
            found.append((row - expected).abs().sum().item() / 2)
    return found


def test_distributions_agree_with_algorithm_1(captioner, request_of):
    engine = DualPathEngine(captioner, Workload(8))
    for index, ratio in enumerate(GRID):
        engine.submit(request_of(index, "low", ratio, Decoding(max_new_tokens=20)))
    assert max(probs_apart(engine, captioner)) < 1e-6  # total variation: no probability differs by more


@pytest.mark.parametrize("views", [1, 3])
def test_engine_in_bfloat16_is_as_exact_as_algorithm_1_in_bfloat16(captioner, request_of, views):
    """Compares total variations from Algorithm 1 in float32."""
    half = load_captioner("miniworld:captioner", dtype="bfloat16")
    engine, literal = DualPathEngine(half, Workload(12, views=views)), []
    decoding = Decoding(max_new_tokens=20, views=Views(count=views))
    requests = [replace(request_of(index, "high", 0.4, decoding), with_logps=True) for index in range(12)]
    for request in requests:
        engine.submit(request)
    found = probs_apart(engine, captioner)
    for request in requests[:6]:
        tokens = list(algorithm1.decode(captioner, request).token_ids)
        for length in range(0, 12, 2):
            exact, rounded = (
                algorithm1.next_token_probs(model, request, tokens[:length]) for model in (captioner, half)
            )
            literal.append((exact - rounded).abs().sum().item() / 2)
    assert sum(found) / len(found) < 1.5 * sum(literal) / len(literal) < 0.05


@pytest.mark.parametrize(
    "mixing",
    [
        MIXINGS["probability"],
        MIXINGS["logit"],
        contrastive_mixing(Contrast(kind="vcd")),
        contrastive_mixing(Contrast(kind="vcd", noise_step=None)),
        contrastive_mixing(Contrast(kind="m3id")),
    ],
    ids=["probability", "logit", "vcd", "vcd-no-image", "m3id"],
)
def test_mixings_agree_with_algorithm_1_in_batches_with_truncation(captioner, request_of, mixing):
    cuts = [{}, {"top_p": 0.7}, {"top_k": 4}, {"top_k": 9, "top_p": 0.9, "temperature": 1.3}, {"temperature": 1e-38}]
    requests = [
        request_of(index, role, 0.5 * (index % 2), Decoding(max_new_tokens=6 + 5 * (index % 3), **cuts[at % len(cuts)]))
        for index in range(6)  # more images than are held
        for at, role in enumerate(("low", "high"), index)
    ]
    engine = DualPathEngine(captioner, Workload(4, mixing=mixing))
    assert engine.decode(requests) == [algorithm1.decode(captioner, each, mixing) for each in requests]


def test_requests_come_and_go_between_steps(captioner, request_of):
    engine = DualPathEngine(captioner, Workload(2))
    for index in range(4):
        engine.submit(request_of(index, "low", 0.2, Decoding(max_new_tokens=6 + index)))
    assert engine.active == 4
    assert engine.step().finished == []
    assert engine.cancel("0/low")  # live
    assert engine.cancel("3/low")  # waiting
    assert not engine.cancel("9/low")
    drawn: dict[str, list[int]] = {}
    done = []
    while engine.active:
        step = engine.step()
        done += step.finished
        for each in step.drawn:
            drawn.setdefault(each.request_id, []).append(each.token)
    assert {caption.request_id for caption in done} == {"1/low", "2/low"}
    alone = DualPathEngine(captioner, Workload(1)).decode([request_of(1, "low", 0.2, Decoding(max_new_tokens=7))])
    assert [caption for caption in done if caption.request_id == "1/low"] == alone
    assert tuple(drawn["2/low"]) == next(caption.token_ids for caption in done if caption.request_id == "2/low")


def test_slots_are_refilled_when_captions_end(captioner, request_of):
    engine = DualPathEngine(captioner, Workload(4))
    for index in range(40):
        for role in ("low", "high"):
            length = 2 + (7 * index + 11 * (role == "high")) % 20
            engine.submit(request_of(index, role, 0.3, Decoding(max_new_tokens=length)))
    while engine.active:
        engine.step()
    assert engine.utilisation > 0.9  # including the end; refilling in groups of four would give 0.6


def test_an_image_is_prefilled_once_for_its_captions(captioner, request_of, monkeypatch):
    engine, prefilled = DualPathEngine(captioner, Workload(6, dual_path_share=0.5)), []
    real = engine._prefill._run
    monkeypatch.setattr(engine._prefill, "_run", lambda ids, images: prefilled.append(images) or real(ids, images))
    for index in range(20):
        for role, ratio in (("low", 0.0), ("high", 0.5)):
            engine.submit(
                request_of(index, role, ratio, Decoding(max_new_tokens=2 + (7 * index + 5 * bool(ratio)) % 19))
            )
    while engine.active:
        engine.step()
    assert sum(not images for images in prefilled) == 1  # the prompt without image
    assert sum(len(images) for images in prefilled) == 20


def test_an_image_prefix_is_stored_once_for_both_captions_and_a_text_prefix_once_for_all(captioner, request_of):
    engine = DualPathEngine(captioner, Workload(8, dual_path_share=0.5, prompts=1))
    engine.decode([request_of(0, "low", 0.0, Decoding(max_new_tokens=32))])
    layout = engine.layout
    image_prefix, text_prefix = (len(captioner.prompt_ids(PROMPT, image)) for image in (captioner.blank, None))
    assert layout.images == 7  # for 8 captions; 4 would do if siblings ended together
    assert layout.bytes == (7 * image_prefix + text_prefix + 12 * 32) * kv_size(captioner).token_bytes


def test_captions_with_different_prompts_wait_for_a_text_prefix(captioner, request_of):
    """No request waits for ever, and an overwritten text prefix is not used."""
    prompts = ["Describe image in detail.", "Describe the image in detail, please.", "Write a caption of this image."]
    requests = [
        replace(request_of(index, role, ratio, Decoding(max_new_tokens=3 + index % 9)), prompt=prompts[index % 3])
        for index in range(18)
        for role, ratio in (("low", 0.0), ("high", 0.7))
    ]
    literal = [algorithm1.decode(captioner, each) for each in requests]
    for places in (1, 2, None):
        assert DualPathEngine(captioner, Workload(6, dual_path_share=0.5, prompts=places)).decode(requests) == literal


def test_h_1_needs_no_image_and_h_0_no_second_path(captioner, request_of, monkeypatch):
    engine = DualPathEngine(captioner, Workload(4))
    real, seen = engine._prefill._run, []
    monkeypatch.setattr(engine._prefill, "_run", lambda ids, images: seen.append(images) or real(ids, images))
    engine.decode([request_of(0, "high", 1.0, Decoding(max_new_tokens=4))])
    assert seen == [[]]
    engine.decode([request_of(0, "low", 0.0, Decoding(max_new_tokens=4))])
    assert len(seen) == 2
    single = DualPathEngine(captioner, Workload(4, dual_path_share=0.0))
    with pytest.raises(ValueError, match=r"'0/high' has h = 0\.5; the engine has no second path"):
        single.submit(request_of(0, "high", 0.5, Decoding()))


def test_prompts_and_captions_of_different_lengths_share_a_batch(captioner, request_of):
    requests = [
        replace(request_of(index, "low", 0.3, Decoding(max_new_tokens=4 + 9 * index)), prompt=prompt)
        for index, prompt in enumerate(["Describe.", PROMPT, "What is in the image?", "Describe image. " * 6])
    ]
    literal = [algorithm1.decode(captioner, each) for each in requests]
    assert DualPathEngine(captioner, Workload(4)).decode(requests) == literal
    in_turn = DualPathEngine(captioner, Workload(2))  # each request is larger than the layout before
    assert [in_turn.decode([each])[0] for each in requests] == literal


def test_a_stop_string_ends_a_caption(captioner, request_of):
    whole = DualPathEngine(captioner, Workload(1)).decode([request_of(0, "low", 0.0, Decoding(temperature=0))])[0]
    stopping = Decoding(temperature=0, stop=("zebra", "There"))
    stopped = DualPathEngine(captioner, Workload(1)).decode([request_of(0, "low", 0.0, stopping)])[0]
    assert stopped.text == whole.text[: whole.text.index("There")]
    assert stopped.finish == "stop"
    assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]
    assert len(stopped.token_ids) < len(whole.token_ids)


def test_memory_limits_the_number_of_slots(captioner, request_of):
    request = request_of(0, "low", 0.0, Decoding(max_new_tokens=16))
    whole = DualPathEngine(captioner, Workload(32))
    whole.decode([request])
    assert whole.layout.slots == 32
    half = DualPathEngine(captioner, Workload(32), kv_cache_gib=whole.layout.bytes / GIB / 2)
    assert half.decode([request]) == whole.decode([request])
    assert 14 <= half.layout.slots <= 16
    assert half.layout.bytes <= whole.layout.bytes / 2
    none = DualPathEngine(captioner, Workload(32), kv_cache_gib=1e-05)
    with pytest.raises(DeviceError, match=r"one caption take .* GiB .* 1e-05 GiB for them; set 'kv_cache_gib'"):
        none.submit(request)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for CPUs with a C++ compiler")
def test_compiled_steps_give_the_same_captions(captioner, request_of):
    requests = [request_of(index, "high", 0.4, Decoding(max_new_tokens=24)) for index in range(6)]
    compiled = DualPathEngine(captioner, Workload(4), compiling="inductor").decode(requests)
    assert compiled == DualPathEngine(captioner, Workload(4)).decode(requests)


def test_requests_that_do_not_fit_together_are_decoded_in_turn(captioner, request_of):
    """A long prompt and a long caption: memory holds either, but not a layout for both."""
    long_prompt = replace(request_of(0, "low", 0.0, Decoding(max_new_tokens=8)), prompt="Describe image. " * 20)
    long_caption = request_of(1, "low", 0.0, Decoding(max_new_tokens=80))
    alone = [
        DualPathEngine(captioner, Workload(1, dual_path_share=0.0)).decode([each])[0]
        for each in (long_prompt, long_caption)
    ]
    prompt, caption = (len(captioner.prompt_ids(each.prompt, captioner.blank)) for each in (long_prompt, long_caption))
    tokens = max(prompt + 16, caption + 80)
    engine = DualPathEngine(
        captioner, Workload(4, dual_path_share=0.0), kv_cache_gib=(tokens + 1) * kv_size(captioner).token_bytes / GIB
    )
    assert engine.decode([long_prompt, long_caption]) == alone


def test_any_number_of_captions_of_an_image_may_be_requested(captioner, request_of):
    requests = [request_of(0, f"choice-{number}", 0.0, Decoding(max_new_tokens=12)) for number in range(8)]
    alone = [DualPathEngine(captioner, Workload(1, dual_path_share=0.0)).decode([each])[0] for each in requests]
    assert (
        DualPathEngine(captioner, Workload(8, dual_path_share=0.0, captions_per_image=4, images_per_slot=1.0)).decode(
            requests
        )
        == alone
    )


def test_truncation_of_one_caption_does_not_affect_others(captioner, request_of):
    requests = [
        request_of(index, "high", 0.4, Decoding(max_new_tokens=20, **cut))
        for index, cut in enumerate([{}, {"top_p": 0.7}, {}, {"top_k": 1}])
    ]
    alone = [DualPathEngine(captioner, Workload(4)).decode([each])[0] for each in requests]
    assert DualPathEngine(captioner, Workload(4)).decode(requests) == alone


def test_memory_is_freed_before_a_new_layout(captioner, request_of):
    engine = DualPathEngine(captioner, Workload(2))
    engine.decode([request_of(0, "low", 0.0, Decoding(max_new_tokens=4))])
    old = weakref.ref(engine._batch.forward)
    gc.disable()
    try:
        engine.decode([request_of(0, "low", 0.0, Decoding(max_new_tokens=60))])
        assert old() is None
    finally:
        gc.enable()


def test_a_failed_batch_leaves_no_requests(captioner, request_of):
    def requests():
        for index in range(6):
            yield request_of(index, "low", 0.0, Decoding(max_new_tokens=8))
        raise OSError("the disk is gone")

    engine = DualPathEngine(captioner, Workload(2))
    with pytest.raises(OSError, match="the disk is gone"):
        engine.decode(requests())
    assert engine.active == 0


def test_grouped_query_attention_agrees_with_algorithm_1(captioner, request_of):
    """Half as many heads of keys and values as of queries, as in Mistral; random weights."""
    from transformers import LlavaForConditionalGeneration

    settings = copy.deepcopy(captioner.model.config)
    settings.text_config.num_key_value_heads = 2
    torch.manual_seed(0)
    grouped = replace(captioner, model=LlavaForConditionalGeneration._from_config(settings).eval())
    requests = [request_of(index, "high", 0.4, Decoding(max_new_tokens=8)) for index in range(3)]
    literal = [algorithm1.decode(grouped, each) for each in requests]
    assert DualPathEngine(grouped, Workload(2)).decode(requests) == literal


def test_cuda_graphs_need_one_gpu(captioner, request_of):
    engine = DualPathEngine(captioner, Workload(2), compiling="cuda_graphs")
    engine.submit(request_of(0, "low", 0.0, Decoding()))
    with pytest.raises(DeviceError, match="cuda_graphs' needs a model on one GPU"):
        engine.step()


@pytest.mark.parametrize("tiny", [{"temperature": 1e-38}, {"temperature": 5e-324}, {"top_p": 1e-38}])
def test_a_tiny_temperature_or_nucleus_decodes_greedily(captioner, request_of, tiny):
    """With the image alone; a suppressed token is no candidate."""
    requests, greedy = (
        [request_of(index, "low", 0.0, Decoding(max_new_tokens=16, **cut)) for index in range(6)]
        for cut in (tiny, {"temperature": 0})
    )
    engine = DualPathEngine(captioner, Workload(6))
    assert engine.decode(requests) == engine.decode(greedy)


def test_ids_that_the_tokenizer_cannot_decode_are_never_sampled(captioner, request_of):
    """A padded vocabulary, as in LLaVA-1.5, whose padding has the highest logits."""
    words = len(captioner.processor.tokenizer)
    model = copy.deepcopy(captioner.model)
    model.resize_token_embeddings(words + 30)
    with torch.no_grad():
        model.lm_head.weight[words:] = 3 * model.lm_head.weight[:words].mean(0) + model.lm_head.weight[5:35]
    padded = replace(captioner, model=model)
    assert padded.vocabulary == words + 30
    assert set(padded.suppressed_ids) == {*captioner.suppressed_ids, *range(words, words + 30)}
    for mixing in (MIXINGS["probability"], MIXINGS["logit"], contrastive_mixing(Contrast(kind="m3id"))):
        requests = [
            request_of(index, "high", 0.5, Decoding(max_new_tokens=8, **cut))
            for index, cut in enumerate([{}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0}, {"temperature": 1e-38}])
        ]
        captions = DualPathEngine(padded, Workload(4, mixing=mixing)).decode(requests)
        assert captions == [algorithm1.decode(padded, each, mixing) for each in requests]
        assert all(token < words for caption in captions for token in caption.token_ids)


def test_a_caption_without_a_next_token_fails_alone(captioner, request_of, monkeypatch):
    """Two of sixteen captions: one with NaN pixels, one with a NaN step; their slots are reused."""
    requests = [request_of(index, "high", 0.5 * (index % 3), Decoding(max_new_tokens=20)) for index in range(16)]
    alone = by_id(DualPathEngine(captioner, Workload(4)).decode(requests))
    longer = PROMPT + " Describe image in detail."  # what follows it in its place leaves a part of it there
    requests[1] = replace(requests[1], image=spoiled(requests[1].image), prompt=longer)
    real, engine = Forward.__call__, DualPathEngine(captioner, Workload(4))

    def wrong(forward, rows):
        logits = real(forward, rows)
        for slot, live in engine._batch.in_flight():
            if live.request.request_id == "4/high" and len(live.tokens) == 9:
                for row in (slot, live.second_row):
                    logits[row] = math.nan
                    for layer in forward.cache._layers:
                        layer.keys[row, :, 8] = layer.values[row, :, 8] = math.nan
        return logits

    monkeypatch.setattr(Forward, "__call__", wrong)
    for request in requests:
        engine.submit(request)
    failed, captions = [], []
    while engine.active:
        step = engine.step()
        failed += step.failed
        captions += step.finished
    assert [request_id for request_id, _ in failed] == ["1/high", "4/high"]
    assert str(failed[0][1]).startswith("request '1/high': after 0 tokens the model gives no token")
    assert str(failed[1][1]).startswith("request '4/high': after 9 tokens the model gives no token")
    assert by_id(captions) == {name: caption for name, caption in alone.items() if name not in ("1/high", "4/high")}
    with pytest.raises(DecodingError, match="check the model's weights"):
        engine.decode(requests)
    assert engine.active == 0
    broken = replace(captioner, model=copy.deepcopy(captioner.model))
    torch.nn.init.constant_(broken.model.lm_head.weight, math.nan)
    with pytest.raises(DecodingError, match="no token has any probability"):
        algorithm1.decode(broken, requests[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_graphs_give_the_same_captions(request_of, dtype):
    on_gpu = load_captioner("miniworld:captioner", "cuda", dtype)
    requests = [
        request_of(index, role, ratio, Decoding(max_new_tokens=40))
        for index in range(8)
        for role, ratio in (("low", 0.0), ("high", 0.5))
    ]
    plain = DualPathEngine(on_gpu, Workload(6)).decode(requests)
    assert DualPathEngine(on_gpu, Workload(6), compiling="cuda_graphs").decode(requests) == plain


def test_captions_continue_in_fewer_slots_when_memory_runs_out(captioner, many, alone, monkeypatch, caplog):
    """The device holds five captions, but 16 slots are configured. No caption is lost or changed."""
    real = Forward.__call__

    def crowded(forward: Forward, rows):
        if sum(row.prefix is not None for row in rows) > 6 and forward.cache.layout.rows > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(forward, rows)

    monkeypatch.setattr(Forward, "__call__", crowded)
    engine = DualPathEngine(captioner, Workload(16, dual_path_share=0.5))
    captions = engine.decode(many[:40])
    assert captions == [alone[caption.request_id] for caption in captions]
    assert engine.layout.slots == 4
    assert [record.args for record in caplog.records] == [(16, 8), (8, 4)]


def test_a_device_too_small_for_one_caption_is_an_error(captioner, request_of, monkeypatch):
    monkeypatch.setattr("jsfree.decoding.capacity.PATIENCE_SECONDS", 0.3)

    def crowded(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Prefill, "image_prefix", crowded)
    engine = DualPathEngine(captioner, Workload(4))
    with pytest.raises(DeviceError, match="too little memory to decode one caption"):
        engine.decode([request_of(0, "low", 0.0, Decoding())])
    assert engine.active == 0
