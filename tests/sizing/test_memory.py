"""Predicted memory and time, against the engine's real layout and independent estimates."""

from dataclasses import replace

import pytest

from jsfree import config as configuration
from jsfree.checks.devices import Device, check_generation
from jsfree.config import Lora, RunConfig
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.requests import Request
from jsfree.decoding.workload import Workload
from jsfree.errors import ConfigError
from jsfree.sizing import memory, rates
from jsfree.sizing.memory import Lengths
from jsfree.sizing.shapes import PUBLISHED, shape_of
from jsfree.sizing.workload import workload_of

LLAVA = PUBLISHED["llava-hf/llava-1.5-13b-hf"]
LENGTHS = Lengths(prefix=592, text_prefix=16, caption=130, maximum=256)


@pytest.mark.parametrize("views", [1, 3])
def test_the_predicted_generation_memory_matches_the_engine_layout(captioner, views):
    settings = {"slots": 8, "decoding": {"max_new_tokens": 20, "views": {"count": views}}}
    config = configuration.build({"generate": settings}, where="test")
    prompt, decoding = config.prompt, config.generate.decoding
    engine = DualPathEngine(captioner, Workload(8, dual_path_share=0.5, prompts=1, views=views))
    engine.decode([Request("one", captioner.blank, prompt, 0.5, (0, 0), decoding)])
    with_image, without = (len(captioner.prompt_ids(prompt, image)) for image in (captioner.blank, None))
    predicted = memory.generation(
        shape_of(captioner.model.config), config, Lengths(with_image, without, 20, decoding.max_new_tokens)
    )
    assert engine.layout is not None
    assert predicted.held["keys and values"] == engine.layout.bytes
    assert predicted.held["weights"] == sum(weight.nbytes for weight in captioner.model.parameters())


def trained(**changes) -> float:
    workers = RunConfig().train.resources.model_copy(update={"replicas": 8})
    a_worker = {"pairs_per_worker": 4, "pairs_per_step": 32, "resources": workers}
    train = RunConfig().train.model_copy(update={**a_worker, **changes})
    return memory.training(LLAVA, train, "bfloat16", LENGTHS).total


def test_each_memory_saving_option_reduces_memory():
    full = trained()
    assert trained(gradient_checkpointing=True) < full
    assert trained(lora=Lora()) < full
    assert trained(offload="optimizer") < full
    assert trained(zero_stage=3) < full
    assert trained(zero_stage=1) > full


def test_no_more_slots_are_offered_than_fit():
    config = configuration.build({"captioner": {"dtype": "bfloat16"}, "generate": {"slots": 512}}, where="test")
    slots = memory.slots_that_fit(LLAVA, config, LENGTHS, 80 * 10**9)
    assert 0 < slots < 512
    assert memory.generation(LLAVA, config, LENGTHS, slots).total < 80e9
    assert memory.slots_that_fit(LLAVA, config, LENGTHS, 24 * 10**9) == 0


def with_views(count: int, gpus: int) -> RunConfig:
    """A run that generates and evaluates with several views of each image."""
    views = {"views": {"count": count}}
    generate = {"slots": 512, "decoding": views, "resources": {"gpus": gpus, "replicas": 1}}
    return configuration.build({"generate": generate, "evaluate": {"modes": {"greedy": views}}}, where="test")


def test_five_views_take_two_to_six_times_the_memory():
    slots = [memory.slots_that_fit(LLAVA, with_views(count, 1), LENGTHS, 120 * 10**9) for count in (1, 5)]
    assert slots[0] / 6 < slots[1] < slots[0] / 2
    assert memory.generation(LLAVA, with_views(5, 1), LENGTHS, slots[1]).total < 120e9


def test_an_evaluation_mode_with_five_views_is_what_memory_must_hold():
    views = {"views": {"count": 5}}
    generate = {"slots": 512, "resources": {"gpus": 1, "replicas": 1}}
    modes = {"greedy": {}, "steady": views}
    config = configuration.build({"generate": generate, "evaluate": {"modes": modes}}, where="test")
    plain = configuration.build({"generate": generate}, where="test")
    fitting = memory.fitting_slots(LLAVA, config, LENGTHS, 120 * 10**9)
    assert set(fitting) == {"generate", "evaluate.modes.greedy", "evaluate.modes.steady"}
    assert fitting["generate"] == memory.fitting_slots(LLAVA, plain, LENGTHS, 120 * 10**9)["generate"]
    assert 5 * fitting["evaluate.modes.steady"] <= fitting["evaluate.modes.greedy"] + 5
    assert fitting["generate"] > 2 * fitting["evaluate.modes.steady"]
    # Per caption: five prefixes of the image and five rows of its own tokens.
    steady = memory.captionings(config, LENGTHS)[-1]
    own = memory.memory_of(LLAVA, config, LENGTHS, steady, slots=10).held["keys and values"]
    keys = memory.keys_of(LLAVA, "float32").token_bytes
    assert own >= 10 * 5 * (LENGTHS.prefix + config.evaluate.modes["steady"].max_new_tokens) * keys
    [finding] = check_generation(config, LLAVA, LENGTHS, Device("a GPU", 120 * 10**9, True))
    assert "for 512 captions together by evaluate.modes.steady on 120 GB" in finding.found
    assert f"{fitting['evaluate.modes.steady']} fit" in finding.found


@pytest.mark.parametrize("stage", ["generate", "evaluate"])
@pytest.mark.parametrize("gpus", [0, 1])
def test_five_views_take_longer_but_less_than_five_times_as_long(gpus, stage):
    seconds = []
    for config in (with_views(1, gpus), with_views(5, gpus)):
        work = workload_of(config, 10**6)
        times = rates.stage_times(config, work, LLAVA, LENGTHS, rates.GPUS["h100-80g"], slots=32)
        seconds.append(next(time.seconds for time in times if time.stage == stage))
    assert 1.5 * seconds[0] < seconds[1] < 5 * seconds[0]


@pytest.mark.parametrize(("gpu", "least", "most"), [("a100-80g", 5, 8), ("h200", 1.5, 3)])
def test_generation_time_of_100k_images_matches_independent_estimates(gpu, least, most):
    """Independent estimates: 5.2 to 6.2 h with 98 slots, and 1.9 h with 220 slots."""
    generate = {"slots": {"a100-80g": 98, "h200": 220}[gpu], "resources": {"gpus": 1, "replicas": 1}}
    config = configuration.build({"captioner": {"dtype": "bfloat16", "ref": "llava-hf/llava-1.5-13b-hf"},
                                  "generate": generate}, where="test")  # fmt: skip
    times = rates.stage_times(config, workload_of(config, 100_000), LLAVA, LENGTHS, rates.GPUS[gpu], generate["slots"])
    assert least < next(time.seconds for time in times if time.stage == "generate") / 3600 < most


def test_measured_shares_replace_the_estimates_and_are_labelled():
    config = configuration.build({"generate": {"resources": {"gpus": 1, "replicas": 1}}}, where="test")
    work, estimated = workload_of(config, 1000), rates.GPUS["h100-80g"]
    half = rates.Shares(bandwidth=0.4, prefill=0.25, training=0.35, clip=0.3, known="measured (a card, 2026-11-26)")
    first, other = (
        next(
            time for time in rates.stage_times(config, work, LLAVA, LENGTHS, gpu, slots=32) if time.stage == "generate"
        )
        for gpu in (estimated, replace(estimated, shares=half))
    )
    assert (first.known, other.known) == ("estimated (roofline)", "measured (a card, 2026-11-26)")
    assert first.seconds < other.seconds < 2 * first.seconds  # the start-up time is not halved


@pytest.mark.parametrize(
    ("name", "memory_gb"),
    [
        ("NVIDIA A100-SXM4-80GB", 80),
        ("NVIDIA A100-SXM4-40GB", 40),
        ("A100", 80),
        ("NVIDIA L40S", 48),
        ("L4", 24),
        ("NVIDIA L40", 48),
        ("Tesla V100-SXM2-16GB", 16),
        ("Tesla V100-SXM2-32GB", 32),
    ],
)
def test_gpus_are_identified_by_their_torch_and_ray_names(name, memory_gb):
    assert rates.gpu_named(name).memory == memory_gb * 1e9


@pytest.mark.parametrize("name", ["NVIDIA GH200 480GB", "Quadro T400", "voodoo2"])
def test_a_gpu_with_a_similar_name_is_not_mistaken_for_another(name):
    with pytest.raises(ConfigError):
        rates.gpu_named(name)


def test_a_fraction_of_a_gpu_has_that_fraction_of_its_speed():
    def hours(**resources) -> float:
        config = configuration.build({"generate": {"resources": resources}}, where="test")
        work = workload_of(config, 1_000_000)
        times = rates.stage_times(config, work, LLAVA, LENGTHS, rates.GPUS["h200"], slots=32)
        return next(time.device_seconds for time in times if time.stage == "generate") / 3600

    assert hours(replicas=4, gpus=0.25) == pytest.approx(hours(replicas=1, gpus=1), rel=0.01)


@pytest.mark.parametrize("gpus", [0, 1])
def test_scoring_by_the_captioner_is_named_and_takes_its_resources_and_more_time(gpus):
    found = {}
    for judge in ("clip", "captioner"):
        generate, score = {"resources": {"gpus": gpus, "replicas": 3}}, {"resources": {"gpus": gpus, "replicas": 1}}
        config = configuration.build({"generate": generate, "score": {"judge": judge, **score}}, where="test")
        work = workload_of(config, 10**6)
        times = rates.stage_times(config, work, LLAVA, LENGTHS, rates.GPUS["h100-80g"], slots=32)
        found[judge] = next(time for time in times if time.stage == "score")
    assert found["clip"].work == "2,000,000 captions, by CLIP"
    assert found["captioner"].work == "2,000,000 captions, by m0"
    assert (found["clip"].devices[0], found["captioner"].devices[0]) == ("1", "3")
    assert found["captioner"].device_seconds > 3 * found["clip"].device_seconds


def test_judging_on_a_gpu_takes_the_operations_of_prefilling_images_and_questions():
    config = configuration.build({"score": {"judge": "captioner"}}, where="test")
    gpu, work = rates.GPUS["h100-80g"], workload_of(config, 1000)
    positions = 1000 * (LENGTHS.prefix + 2 * 2 * LENGTHS.caption)  # two captions, repeated in questions twice as long
    expected = 2 * memory.parameters(LLAVA).total * positions / (gpu.shares.prefill * gpu.flops)
    assert rates.judge_seconds(work, LLAVA, LENGTHS, gpu) == pytest.approx(expected)
