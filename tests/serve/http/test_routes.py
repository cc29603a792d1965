"""The HTTP API over real engines in this process: answers, refusals, limits. Ray is added in test_app.py."""

import asyncio
import base64
import io
import json
from unittest.mock import ANY
from urllib.parse import quote

import pytest
from PIL import Image
from starlette.testclient import TestClient

from jsfree.config import Decoding, Serve
from jsfree.decoding import algorithm1
from jsfree.decoding.requests import Request
from jsfree.miniworld import world
from serve.app import served_models
from serve.http import routes as api
from tests.support import asking
from tests.support.asking import chat, data_url, image, picture_url, scene_url, text, user


def limited(finished_run, engines, **limits) -> TestClient:
    """A client of the same API with other limits."""
    settings = Serve.model_validate({**asking.SERVED, **limits})
    app = api.create_app(served_models(finished_run.run), engines, settings, world.PROMPT)
    return TestClient(app, raise_server_exceptions=False)


def ask(client, **fields) -> dict:
    answer = client.post("/v1/chat/completions", json=chat(**fields))
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(completion: dict) -> list[str]:
    return [choice["message"]["content"] for choice in completion["choices"]]


def error_of(answer, status: int) -> dict:
    """The error in a response, which must have OpenAI's format."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "Traceback" not in body["error"]["message"]
    assert answer.headers["x-should-retry"] == ("true" if status in (429, 503) else "false")
    return body["error"]


def test_a_greedy_caption_equals_the_oracle(client, finished_run):
    """Text, finish reason and token counts equal those of Algorithm 1 at h = 0, for both models."""
    decoding = Decoding(temperature=0, max_new_tokens=60)
    for model, captioner in (("before", finished_run.before), ("after", finished_run.after)):
        picture = world.draw(world.scene("development", 3))
        request = Request("x", captioner.inputs(picture), world.PROMPT, 0.0, 0, decoding)
        expected = algorithm1.decode(captioner, request)
        answer = ask(client, model=model, url=scene_url(3), max_tokens=60)
        assert answer["model"] == model
        assert said(answer) == [expected.text]
        assert answer["choices"][0]["finish_reason"] == expected.finish
        assert expected.finish == ("stop" if model == "before" else "length")
        prompt_tokens = len(captioner.prompt_ids(world.PROMPT, captioner.blank))
        written = len(expected.token_ids)
        assert answer["usage"] == {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": written,
            "total_tokens": prompt_tokens + written,
        }


def test_models_are_found_by_role_and_by_name(client):
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["before", "m0", "after", "m1"]
    assert client.get("/v1/models/m1").json() == client.get("/v1/models/after").json() | {"id": "m1"}
    assert [(model["parent"], model["max_model_len"]) for model in listed["data"]] == [(None, 512)] * 2 + [
        ("m0", 512)
    ] * 2
    assert said(ask(client, model="m0")) == said(ask(client, model="before"))
    assert said(ask(client, model="m1")) == said(ask(client, model="after"))
    assert error_of(client.get("/v1/models/m2"), 404)["code"] == "model_not_found"
    missing = error_of(client.post("/v1/chat/completions", json=chat(model="gpt-4o")), 404)
    assert missing["param"] == "model"
    assert "before, m0, after, m1" in missing["message"]


def test_a_seed_repeats_a_caption_and_choices_differ(client):
    sampled = {"temperature": 1, "max_tokens": 40, "n": 4}
    first = said(ask(client, seed=7, **sampled))
    assert said(ask(client, seed=7, **sampled)) == first
    assert said(ask(client, seed=7, **{**sampled, "n": 1})) == first[:1]
    assert len(set(first)) > 1
    assert said(ask(client, seed=8, **sampled)) != first
    assert said(ask(client, **sampled)) != said(ask(client, **sampled))


def test_length_and_stops_end_a_caption(client):
    whole = ask(client, max_tokens=90)
    words = said(whole)[0]
    cut = ask(client, max_completion_tokens=5, max_tokens=90)
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 5
    assert words.startswith(said(cut)[0])
    stop = words.split()[4]
    for given in (stop, [stop, "zebra"]):
        stopped = ask(client, max_tokens=90, stop=given)
        assert said(stopped) == [words[: words.index(stop)]]
        assert stopped["choices"][0]["finish_reason"] == "stop"
        assert stopped["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_three_image_formats_are_accepted(client, kind):
    assert said(ask(client, url=picture_url(48, 64, kind)))


def with_image(kind: str = "PNG") -> tuple[str, str]:
    """A small image in base64, and its data URL."""
    file = io.BytesIO()
    picture = Image.effect_noise((40, 40), 90).convert("RGB")  # so that the base64 has every sign
    picture.save(file, kind)
    return base64.b64encode(file.getvalue()).decode(), data_url(file.getvalue(), kind.lower())


def test_all_forms_of_a_data_url_give_the_same_caption(client):
    encoded, plain = with_image()
    folded = base64.encodebytes(base64.b64decode(encoded)).decode()
    escaped = "".join(f"%{byte:02x}" for byte in base64.b64decode(encoded))
    expected = said(ask(client, url=plain))
    assert {"+", "/"} < set(encoded)
    ways = {
        "upper case": f"DATA:IMAGE/PNG;BASE64,{encoded}",
        "parameters": f"data:image/png;charset=utf-8;name=x.png;base64,{encoded}",
        "blanks around": f" \r\n{plain}\n\t",
        "blanks in it": f"data: image/png ; base64 ,{encoded[:50]} {encoded[50:]}",
        "folded": f"data:image/png;base64,{folded}",
        "folded with returns": "data:image/png;base64," + folded.replace("\n", "\r\n"),
        "percent-encoded": f"data:image/png;base64,{quote(encoded, safe='')}",
        "percent-encoded and folded": f"data:image/png;base64,{quote(folded)}",
        "escapes in the type": f"data:image%2Fpng;base64,{encoded}",
        "alphabet of URLs": "data:image/png;base64," + encoded.replace("+", "-").replace("/", "_"),
        "no padding": plain.rstrip("="),
        "no base64": f"data:image/png,{escaped}",
        "an old type": f"data:image/x-png;base64,{encoded}",
        "declared jpeg": f"data:image/jpeg;base64,{encoded}",
        "declared webp": f"data:image/webp;base64,{encoded}",
    }
    given = {name: said(ask(client, url=url)) for name, url in ways.items()}
    assert given == dict.fromkeys(ways, expected)
    jpeg = with_image("JPEG")[0]
    for declared in ("jpg", "JPG", "pjpeg", "png"):
        assert said(ask(client, url=f"data:image/{declared};base64,{jpeg}"))


def test_null_is_treated_as_absent_at_every_level(client):
    detailed = {"type": "image_url", "image_url": {"url": scene_url(), "detail": None, "extra": None}, "text": None}
    spoken = {**text(), "image_url": None, "annotations": None}
    message = {"role": "user", "content": [detailed, spoken], "name": None, "tool_calls": None, "refusal": None}
    nothing = dict.fromkeys(("temperature", "max_tokens", "stop", "n", "seed", "tools", "stream_options", "unheard_of"))
    asked = {**nothing, "messages": [message], "response_format": {"type": "text", "json_schema": None}}
    answer = ask(client, **{**asked, "temperature": 0, "max_tokens": 12, "stream_options": {"include_usage": None}})
    assert said(answer) == said(ask(client))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_body_of_any_unicode_encoding_is_read(client, encoding):
    body = json.dumps(chat(user="Zoë 🎈"), ensure_ascii=False).encode(encoding)
    answer = client.post("/v1/chat/completions", content=body)
    assert said(answer.json()) == said(ask(client))


def test_control_characters_and_rare_characters_are_accepted(client):
    for words in ("a\0b", "\ud83c\udf88 whole pair", "\u202e\ufeff", "\uffff", "é" * 4000):
        content = json.dumps(chat(messages=user(image(), text(words)), stop=["\0"], user="\0")).encode()
        answer = client.post("/v1/chat/completions", content=content)
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_head_requests_are_answered_like_get(client):
    for path in ("/healthz", "/v1/models", "/v1/models/m1"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == client.get(path).headers["content-length"]
    assert client.head("/v1/models/m9").status_code == 404
    assert client.head("/compare").status_code == 405


def test_default_values_of_unsupported_fields_are_accepted(client):
    nothing = {"stream": False, "logprobs": False, "tools": None, "response_format": {"type": "text"}, "user": "me"}
    harmless = {"metadata": {"a": "b"}, "store": True, "safety_identifier": "x", "prompt_cache_key": "y"}
    cached = user({**image(), "cache_control": {"type": "ephemeral"}}, text())
    assert said(ask(client, frequency_penalty=0, messages=cached, **nothing, **harmless)) == said(ask(client))


def test_a_comparison_sends_the_same_question_to_both_models(client):
    body = {"image": scene_url(1), "prompt": "Describe image in detail.", "temperature": 1, "seed": 1, "max_tokens": 30}
    compared = client.post("/v1/compare", json=body).json()
    assert client.post("/compare", json=body).json() == compared | {"created": ANY}
    assert compared["captions"] == [compared["before"], compared["after"]]
    assert compared["seed"] == 1
    for role, name in (("before", "m0"), ("after", "m1")):
        alone = ask(client, model=role, url=scene_url(1), temperature=1, seed=1, max_tokens=30)
        assert compared[role]["model"] == name
        assert compared[role]["text"] == said(alone)[0]
        assert compared[role]["finish_reason"] == alone["choices"][0]["finish_reason"]
    assert compared["before"]["text"] != compared["after"]["text"]
    defaults = client.post("/compare", json={"image": scene_url(1), "max_tokens": 60}).json()
    assert defaults["prompt"] == world.PROMPT
    assert defaults["before"]["text"] == said(ask(client, url=scene_url(1), max_tokens=60))[0]


@pytest.mark.parametrize("name", asking.BAD_CHATS)
def test_a_bad_request_is_refused_with_its_field(client, name):
    body, param, code = asking.BAD_CHATS[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    error = error_of(client.post("/v1/chat/completions", content=content), 400)
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "image"),
        ({"image": "http://example.org/a.png"}, "image"),
        ({"image": data_url(asking.PNG[:300])}, "image"),
        ({"image": scene_url(), "prompt": "<image>"}, "prompt"),
        ({"image": scene_url(), "prompt": "a<pad>b"}, "prompt"),
        ({"image": scene_url(), "models": ["m7"]}, "models"),
        ({"image": scene_url(), "n": 2}, "n"),
        ({"image": scene_url(), "prompt": "\ud83d"}, "prompt"),
    ],
)
def test_a_bad_comparison_is_refused_with_its_field(client, body, param):
    content = json.dumps(body).encode()  # httpx cannot write half of a surrogate pair
    error = error_of(client.post("/compare", content=content), 404 if param == "models" else 400)
    assert error["param"] == param


def test_unknown_paths_and_methods_are_refused(client):
    assert error_of(client.get("/v1/completions"), 404)["code"] == "not_found"
    answer = client.get("/v1/chat/completions")
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


def test_a_large_body_is_refused_with_or_without_its_length(client, finished_run):
    limit = finished_run.run.config.serve.max_body_bytes
    sent = []

    def chunks():
        for _ in range(100):
            sent.append(1)
            yield bytes(limit // 4)

    assert error_of(client.post("/compare", content=bytes(limit + 1)), 413)["code"] == "too_large"
    assert error_of(client.post("/compare", content=chunks()), 413)["code"] == "too_large"


def test_a_decompression_bomb_is_refused_by_its_header(client):
    """100 megapixels in a few kilobytes are refused before any pixel is decoded."""
    import tracemalloc

    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    assert len(file.getvalue()) < 50_000
    tracemalloc.start()
    error = error_of(client.post("/compare", json={"image": data_url(file.getvalue())}), 400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "250000 pixels" in error["message"]
    assert peak < 5_000_000


def test_captions_beyond_the_limit_are_refused_and_the_others_decoded(client):
    """4 slots and 28 waiting: of five requests for 8 captions at once, four are answered."""

    async def five(engines_client):
        body = chat(model="after", n=8, temperature=1, max_tokens=80)
        post = engines_client.post
        return await asyncio.gather(*(asyncio.to_thread(post, "/v1/chat/completions", json=body) for _ in range(5)))

    answers = asyncio.run(five(client))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 200, 200, 200, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert error_of(refused, 429)["type"] == "rate_limit_error"
    assert refused.headers["retry-after"] == "1"


def test_too_many_requests_are_refused_before_their_body(finished_run, engines):
    with limited(finished_run, engines, max_requests=1) as client:

        async def two():
            body = chat(model="after", n=8, temperature=1, max_tokens=120)
            slow = asyncio.create_task(asyncio.to_thread(client.post, "/v1/chat/completions", json=body))
            await asyncio.sleep(0.3)
            second = await asyncio.to_thread(client.post, "/compare", content=b"never read")
            return await slow, second

        slow, second = asyncio.run(two())
        assert slow.status_code == 200
        assert error_of(second, 429)["code"] == "overloaded"
        assert client.get("/v1/models").status_code == 200


def test_a_request_that_times_out_frees_its_slots(finished_run, engines):
    with limited(finished_run, engines, request_timeout_s=0.02) as client:
        body = chat(model="after", n=8, temperature=1, max_tokens=400)
        error = error_of(client.post("/v1/chat/completions", json=body), 408)
        assert error["code"] == "timeout"
    assert engines["after"]._admitted == 0


def test_health_covers_both_engines(finished_run, engines):
    class Dead:
        async def healthy(self) -> bool:
            return False

    with limited(finished_run, engines) as client:
        assert client.get("/healthz").json() == {"status": "ok", "models": {"before": "m0", "after": "m1"}}
    with limited(finished_run, {**engines, "after": Dead()}) as client:
        assert "after" in error_of(client.get("/healthz"), 503)["message"]


def test_an_unexpected_error_reveals_nothing_to_the_client(finished_run, engines, caplog):
    class Broken:
        async def caption(self, question):
            raise RuntimeError("secret path /etc/keys")

    with limited(finished_run, {**engines, "before": Broken()}) as client:
        answer = client.post("/v1/chat/completions", json=chat())
    assert "secret" not in answer.text
    assert error_of(answer, 500)["code"] == "internal_error"
    assert "secret path" in caplog.text  # the error is logged


def test_an_image_at_the_limits_is_accepted(client):
    assert said(ask(client, url=picture_url(500, 500)))
    assert said(ask(client, url=picture_url(8, 8)))
    encoded = base64.b64encode(asking.PNG).decode()
    assert said(ask(client, messages=user(text("Describe"), image(f"data:image/png;base64,{encoded}"))))


def test_an_image_at_the_byte_limit_with_line_breaks_in_its_base64_fits_the_body(client, finished_run):
    limit = finished_run.run.config.serve.max_image_bytes
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "teal").save(file, "PNG")
    content = file.getvalue() + bytes(limit - len(file.getvalue()))  # decoders ignore bytes after the last PNG chunk
    folded = base64.encodebytes(content).decode().replace("\n", "\r\n")
    assert said(ask(client, url=f"data:image/png;base64,{folded}"))
