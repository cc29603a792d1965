"""Asks a server through litellm; prints what a user of litellm gets, as JSON.

    LITELLM_LOCAL_MODEL_COST_MAP=True python with_litellm.py < request.json

The request has ``base_url``, ``api_key``, ``model`` and ``image`` (a data URL) and ``text``.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import litellm

TOOL = {"type": "function", "function": {"name": "describe", "parameters": {"type": "object", "properties": {}}}}


def refusal(call: Callable[[], Any]) -> dict[str, Any]:
    """The error that a call raises, as its attributes show it."""
    try:
        call()
    except litellm.exceptions.APIError as error:
        return {"class": type(error).__name__, "status": error.status_code, "message": str(error)}
    except (litellm.BadRequestError, litellm.AuthenticationError, litellm.NotFoundError) as error:
        return {"class": type(error).__name__, "status": error.status_code, "message": str(error)}
    return {"class": None}


def main(asked: dict[str, str]) -> dict[str, Any]:
    """Everything that the test asserts."""
    image = {"type": "image_url", "image_url": {"url": asked["image"]}}
    request: dict[str, Any] = {
        "model": f"openai/{asked['model']}",
        "api_base": asked["base_url"],
        "api_key": asked["api_key"],
        "messages": [{"role": "user", "content": [image, {"type": "text", "text": asked["text"]}]}],
        "temperature": 0,
        "num_retries": 0,
    }
    answer = litellm.completion(**request)
    chunks = list(litellm.completion(**request, stream=True, stream_options={"include_usage": True}))
    rebuilt = litellm.stream_chunk_builder(chunks, messages=request["messages"])

    async def asynchronous() -> list[str]:
        whole = await litellm.acompletion(**request)
        stream = await litellm.acompletion(**request, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return [whole.choices[0].message.content, "".join(parts)]

    return {
        "completion": {"text": answer.choices[0].message.content, "finish": answer.choices[0].finish_reason},
        "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
        "stream": [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices],
        "rebuilt": [rebuilt.choices[0].message.content, rebuilt.usage.prompt_tokens, rebuilt.usage.completion_tokens],
        "asynchronous": asyncio.run(asynchronous()),
        "tools": refusal(lambda: litellm.completion(**request, tools=[TOOL])),
        "json": refusal(lambda: litellm.completion(**request, response_format={"type": "json_object"})),
        "wrong key": refusal(lambda: litellm.completion(**request | {"api_key": "x"})),
        "unknown model": refusal(lambda: litellm.completion(**request | {"model": "openai/gpt-4o"})),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))  # noqa: T201
