"""vLLM's arguments for settings and requests, and what it refuses. `make interop` asks vLLM itself."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from jsfree import config as configuration
from jsfree.config import Decoding
from jsfree.decoding.requests import Request
from jsfree.errors import ConfigError
from jsfree.miniworld import world
from serve.app import Arguments, configured
from serve.engines.vllm_arguments import drawn_tokens, engine_arguments, sampling_arguments, unsupported
from serve.http import errors
from serve.http.protocol import Question, Refusal


def request(key: int = 2**100 + 5, alternatives: int | None = None, **decoding) -> Request:
    return Request(
        "x", None, world.PROMPT, 0.0, key, Decoding(max_new_tokens=40, **decoding), alternatives=alternatives
    )


def test_a_request_is_translated_to_vllms_terms(captioner):
    asked = Request(
        "x",
        None,
        world.PROMPT,
        0.0,
        2**100 + 5,
        Decoding(temperature=0.7, top_p=0.9, top_k=40, max_new_tokens=33, stop=("It is",)),
        alternatives=3,
        presence_penalty=0.5,
        frequency_penalty=-1.5,
    )
    found = sampling_arguments(asked, captioner)
    assert found.pop("logprobs") >= 3
    assert found == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 5,
        "max_tokens": 33,
        "presence_penalty": 0.5,
        "frequency_penalty": -1.5,
        "logit_bias": dict.fromkeys(captioner.suppressed_ids, -math.inf),
        # Its end tokens end a caption, whatever the generation configuration says, and nothing else.
        "ignore_eos": True,
        "stop_token_ids": sorted(captioner.eos_ids),
        # Stop strings are found in the text that this project decodes.
        "detokenize": False,
    }


@pytest.mark.parametrize(("temperature", "expected"), [(0.0, 0.0), (1e-6, 0.01), (2.0, 2.0)])
def test_a_temperature_below_vllms_minimum_is_raised_but_0_stays_greedy(captioner, temperature, expected):
    assert sampling_arguments(request(temperature=temperature), captioner)["temperature"] == expected


def test_log_probabilities_are_asked_for_only_if_the_request_does(captioner):
    assert sampling_arguments(request(), captioner)["logprobs"] is None
    assert sampling_arguments(request(alternatives=0), captioner)["logprobs"] >= 0


def test_seeds_fit_into_64_bits_and_differ_between_choices(captioner):
    seeds = {sampling_arguments(request(key), captioner)["seed"] for key in (1, 2, 2**128 - 1)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


@dataclass
class Logprob:
    logprob: float


def test_log_probabilities_have_the_most_probable_tokens_without_suppressed_ones():
    steps = [{7: Logprob(-3.0), 3: Logprob(-0.1), 4: Logprob(-0.5), 9: Logprob(-1.0)}]
    (drawn,) = drawn_tokens(request(alternatives=2), 5, [7], steps, frozenset({4}))
    assert (drawn.position, drawn.token) == (5, 7)
    assert (drawn.logp.token, drawn.logp.logp) == (7, -3.0)
    assert drawn.logp.alternatives == ((3, -0.1), (9, -1.0))
    first, second = drawn_tokens(request(), 0, [7, 8], None, frozenset())
    assert (first.position, second.position, second.token, second.logp) == (0, 1, 8, None)


QUESTION = Question(b"image", world.PROMPT, 1.0, 1.0, 40, 0)


@pytest.mark.parametrize(
    ("field", "changed"),
    [("messages", {"image": None}), ("hallucination_ratio", {"ratio": 0.1}), ("views", {"views": 2})],
)
def test_what_vllm_cannot_do_is_refused_with_the_field_and_the_remedy(field, changed):
    found, message = unsupported(Question(**{**vars(QUESTION), **changed}))
    assert found == field
    assert "serve.engine: jsfree" in message
    refused = errors.refused(Refusal("unsupported_value", message, found), "image", "prompt")
    assert (refused.status, refused.content()["error"]["param"]) == (400, field)


def test_vllm_answers_one_view_at_ratio_0():
    assert unsupported(QUESTION) is None
    assert unsupported(Question(**{**vars(QUESTION), "views": 1, "stop": ("a",), "choices": 3})) is None


def settings(*overrides: str):
    return configuration.load(None, ["serve.engine=vllm", *overrides])


def test_two_models_share_a_gpu_by_default_and_settings_take_precedence(captioner):
    def arguments(gpus, *overrides):
        return engine_arguments(settings(*overrides), Path("model"), captioner, gpus)

    assert arguments(0.5)["gpu_memory_utilization"] == pytest.approx(0.45)
    assert arguments(2)["gpu_memory_utilization"] == pytest.approx(0.9)
    assert arguments(2)["tensor_parallel_size"] == 2
    assert arguments(1, "serve.vllm.gpu_memory_utilization=0.3")["gpu_memory_utilization"] == 0.3
    assert arguments(1)["kv_cache_memory_bytes"] is None
    assert arguments(1, "serve.kv_cache_gib=2")["kv_cache_memory_bytes"] == 2 * 2**30
    assert arguments(0)["kv_cache_memory_bytes"] == 2**30  # else vLLM takes 0.9 of a machine's memory
    assert arguments(1, "serve.slots=7")["max_num_seqs"] == 7
    assert arguments(1)["load_format"] == "safetensors"  # no pickles


def test_more_views_are_refused_when_the_server_starts():
    with pytest.raises(ConfigError, match=r"views.count' is 3"):
        settings("serve.views.count=3")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_package_is_reported_with_the_command_that_installs_it(finished_run):
    arguments = Arguments(run=finished_run.run.folder.uri, settings=["serve.engine=vllm"])
    with pytest.raises(ConfigError) as raised:
        configured(arguments)
    assert "uv sync --extra vllm" in raised.value.remedy
