"""Asks a server through LangChain; prints what a user of LangChain gets, as JSON.

    python with_langchain.py < request.json

The request has ``base_url``, ``api_key``, ``model`` and ``image`` (a data URL) and ``text``.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai import APIStatusError
from pydantic import BaseModel


class Scene(BaseModel):
    """What is in an image."""

    place: str
    objects: list[str]


def refusal(call: Callable[[], Any]) -> dict[str, Any]:
    """The error that a call raises, as its attributes show it; its class is OpenAI's, from which LangChain derives."""
    try:
        call()
    except APIStatusError as error:
        kind = next(each for each in type(error).__mro__ if each.__module__.startswith("openai"))
        return {"class": kind.__name__, "status": error.status_code, "param": error.param, "code": error.code}
    return {"class": None}


def main(asked: dict[str, str]) -> dict[str, Any]:
    """Everything that the test asserts."""
    options: dict[str, Any] = {"base_url": asked["base_url"], "temperature": 0, "max_retries": 0}
    model = ChatOpenAI(model=asked["model"], api_key=asked["api_key"], stream_usage=True, **options)
    image = {"type": "image_url", "image_url": {"url": asked["image"]}}
    messages = [HumanMessage([image, {"type": "text", "text": asked["text"]}])]
    answer = model.invoke(messages)
    chunks = list(model.stream(messages))

    async def asynchronous() -> list[str]:
        whole = await model.ainvoke(messages)
        return [whole.content, "".join([chunk.content async for chunk in model.astream(messages)])]

    return {
        "invoke": {"text": answer.content, "finish": answer.response_metadata["finish_reason"]},
        "usage": answer.usage_metadata,
        "stream": {"parts": [chunk.content for chunk in chunks], "usage": sum(chunks[1:], chunks[0]).usage_metadata},
        "asynchronous": asyncio.run(asynchronous()),
        "batch": [each.content for each in model.batch([messages, messages])],
        "system": model.invoke([SystemMessage("Be brief."), *messages]).content,
        "logprobs": len(model.bind(logprobs=True).invoke(messages).response_metadata["logprobs"]["content"]),
        "tools": refusal(lambda: model.bind_tools([Scene]).invoke(messages)),
        "streamed tools": refusal(lambda: list(model.bind_tools([Scene]).stream(messages))),
        "json_schema": refusal(lambda: model.with_structured_output(Scene, method="json_schema").invoke(messages)),
        "json_mode": refusal(lambda: model.with_structured_output(Scene, method="json_mode").invoke(messages)),
        "function_calling": refusal(
            lambda: model.with_structured_output(Scene, method="function_calling").invoke(messages)
        ),
        "wrong key": refusal(lambda: ChatOpenAI(model=asked["model"], api_key="x", **options).invoke(messages)),
        "unknown model": refusal(
            lambda: ChatOpenAI(model="gpt-4o", api_key=asked["api_key"], **options).invoke(messages)
        ),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))  # noqa: T201
