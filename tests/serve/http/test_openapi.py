"""The description of the API is true: thousands of generated requests are answered as it says (``make soak``: more).

Requests are valid and invalid by the description. A status or a body that it does not describe is a failure, and so is
an accepted request that is invalid by it. Valid requests may be refused: their images are random texts.
"""

import json
import os

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from jsfree.config import Serve, with_overrides
from serve.app import served_models
from serve.engines.ours import Engine
from serve.http import openapi, schema
from serve.http.bodies import json_object
from serve.http.errors import ApiError
from serve.http.routes import create_app
from tests.support import asking
from tests.support.asking import chat, scene_url

CASES = int(os.environ.get("JSFREE_API_CASES", "300"))
"""Number of generated requests."""


def invalid_data_rejected(context, response, case) -> bool | None:
    """The check of schemathesis, which does not count 413 (too large) as a refusal."""
    return None if response.status_code == 413 else negative_data_rejection(context, response, case)


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    invalid_data_rejected,
    unsupported_method,
]
DOCUMENT = openapi.document(Serve(**asking.SERVED), ["before", "m0", "after", "m1"], needs_key=True)


@pytest.fixture(scope="module")
def described(finished_run):
    """The description of a real application, whose captions are short; one engine answers for all models."""
    config = with_overrides(finished_run.run.config, ["serve.max_new_tokens=4"])
    models = served_models(finished_run.run)
    engine = Engine(config, models[0].ref)
    app = create_app(models, {model.role: engine for model in models}, config.serve, config.prompt)
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    engine.close()


def test_generated_requests_are_answered_as_described(described):
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) == 10
    posts = [operation for operation in operations if operation.method == "post"]
    seen: dict[int, int] = {}

    def examine(operation, count: int, mode) -> None:
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def run(case) -> None:
            response = case.call(timeout=120)
            seen[response.status_code] = seen.get(response.status_code, 0) + 1
            case.validate_response(response, checks=CHECKS)

        run()

    for operation in operations:
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if operation in posts:
                examine(operation, CASES // (2 * len(posts)), mode)
            elif mode is schemathesis.GenerationMode.POSITIVE:
                examine(operation, 3, mode)
    assert sum(seen.values()) >= CASES
    assert 200 in seen
    assert 400 in seen


def validator(name: str):
    return jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", **DOCUMENT})


VALID = {
    "plain": chat(),
    "text as content": chat(messages=[{"role": "user", "content": "Hello"}]),
    "nulls": chat(n=None, stop=None, unheard_of=None, messages=[{"role": "user", "content": "Hello", "name": None}]),
    "one stop": chat(stop="x"),
    "stops": chat(stop=["x", "y"]),
    "ignored": chat(metadata={"a": 1}, store=True, safety_identifier="x", prompt_cache_key="y"),
    "nothing asked of tools": chat(tools=[], tool_choice="none", response_format={"type": "text"}, logit_bias={}),
    "all numbers": chat(n=8, top_p=0.5, top_k=-1, seed=-5, presence_penalty=-2, hallucination_ratio=1, views=5),
}


@pytest.mark.parametrize("name", VALID)
def test_what_is_accepted_is_valid_by_the_description(name):
    body = json.dumps(VALID[name]).encode()
    assert schema.parse(schema.ChatRequest, body, Serve(**asking.SERVED))
    assert list(validator("ChatRequest").iter_errors(VALID[name])) == []


def test_comparisons_are_described():
    body = {
        "image": scene_url(),
        "prompt": "What?",
        "models": ["before", "m1"],
        "seed": 1,
        "stream": True,
        "scores": False,
    }
    assert schema.parse(schema.CompareRequest, json.dumps(body).encode(), Serve(**asking.SERVED))
    assert validator("CompareRequest").is_valid(body)
    assert not validator("CompareRequest").is_valid({**body, "models": ["m7"]})


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/compare", {"image": scene_url(), "max_tokens": 12}, "Comparison"),
        ("/v1/chat/completions", chat(logprobs=True), "ChatCompletion"),
        ("/v1/chat/completions", chat(model="m9"), "Error"),
        ("/v1/models", None, "ModelList"),
        ("/v1/models/m1", None, "Model"),
        ("/healthz", None, "Health"),
    ],
)
def test_answers_are_as_described(client, path, body, name):
    answer = client.get(path) if body is None else client.post(path, json=body)
    assert [str(error) for error in validator(name).iter_errors(answer.json())] == []


STRUCTURAL = ("unknown_parameter", "unsupported_parameter", "missing_required_parameter")


@pytest.mark.parametrize("name", [name for name, (_, _, code) in asking.BAD_CHATS.items() if code in STRUCTURAL])
def test_what_the_schema_refuses_is_invalid_by_the_description(name):
    body = asking.BAD_CHATS[name][0]
    assert not validator("ChatRequest").is_valid(body)
    with pytest.raises(ApiError):
        schema.parse(schema.ChatRequest, json.dumps(body).encode(), Serve(**asking.SERVED))


def test_bodies_are_described_as_they_are_limited():
    """A body of as many parts as the description allows is accepted by the check of bodies."""
    parts = [{"type": "text", "text": "x"}] * schema.MAX_PARTS
    messages = [{"role": "user", "content": parts}] * schema.MAX_MESSAGES
    body = chat(messages=messages, stop=["x" * schema.MAX_STOP_CHARS] * schema.MAX_STOPS)
    assert validator("ChatRequest").is_valid(body)
    assert json_object(json.dumps(body).encode(), Serve(**asking.SERVED).max_prompt_chars)
