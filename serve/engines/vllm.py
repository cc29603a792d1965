"""The engine that decodes with vLLM (extra ``vllm``): one image, one view of it, no hallucination ratio.

Prompts are rendered and tokenized, and tokens decoded, as by our own engine, so both see the same tokens and write the
same text. vLLM preprocesses images, and decodes in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from PIL import Image

from jsfree.config import Decoding, RunConfig
from jsfree.decoding.requests import Request
from jsfree.errors import ConfigError, ModelError
from jsfree.models.contents import CAPTIONER
from jsfree.models.loading import BLANK_SIDE, describe_captioner
from jsfree.models.prompts import ChatPrompt
from jsfree.models.references import local_folder
from serve.engines.base import CaptionEngine, Job, refused
from serve.engines.vllm_arguments import ENVIRONMENT, engine_arguments, unsupported
from serve.engines.vllm_loop import VllmLoop
from serve.http.protocol import Question
from serve.http.security import decoded_image

Rendered = Mapping[str, Any]
"""vLLM's input: tokens, and the preprocessed image."""


def require_vllm() -> None:
    """Check that vLLM is installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("vllm") is None:
        raise ConfigError(
            "serve.engine: 'vllm' requires the package vllm, which is not installed",
            "install the extra 'vllm' (uv sync --extra vllm) on every node, or set serve.engine: jsfree",
        )


class Engine(CaptionEngine[Rendered]):
    """A captioner in vLLM.

    Args:
        config: the run's settings.
        ref: reference of the model.
        gpus: GPUs of the replica; 0 for the CPU.

    Raises:
        ConfigError: vLLM is not installed, or was built for other hardware.
        ModelError: the model cannot be loaded.
        DecodingError: vLLM has failed on a first request.
    """

    def __init__(self, config: RunConfig, ref: str, gpus: float = 0) -> None:
        require_vllm()
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        _require_hardware(gpus)
        captioner = describe_captioner(ref, config.captioner.preprocessing, config.models)
        super().__init__(captioner, config.serve)
        arguments = engine_arguments(config, local_folder(ref, CAPTIONER, config.models), captioner, gpus)
        try:
            self._loop = VllmLoop(arguments, captioner, config.serve.stall_s)
        except Exception as error:
            raise ModelError(
                f"vLLM cannot load {ref!r}: {' '.join(str(error).split())}",
                "see the replica's log; on a small or shared GPU set serve.vllm.gpu_memory_utilization or"
                " serve.kv_cache_gib, or use serve.engine: jsfree",
            ) from error
        try:
            self._warm_up(config.prompt, ref)
        except BaseException:
            self.close()
            raise

    async def context_length(self) -> int | None:
        return self._loop.context_length

    def _require_supported(self, question: Question) -> None:
        problem = unsupported(question)
        if problem is not None:
            field, message = problem
            raise refused("unsupported_value", message, field)

    def _open(self, question: Question, content: bytes) -> Rendered:
        with decoded_image(content, self._settings) as image:
            return self._rendered(question.prompt, image)

    def _lengths(self, question: Question, opened: Rendered | None) -> tuple[int, int]:
        assert opened is not None  # questions without an image are refused
        tokens = len(opened["prompt_token_ids"])
        return tokens, self._loop.context_length - tokens

    def _job(self, question: Question, opened: Rendered | None, requests: Sequence[Request], prompt_tokens: int) -> Job:
        return Job(requests, prompt_tokens, self._loop, partial(self._loop.submit, requests, opened))

    def _loops(self) -> Sequence[VllmLoop]:
        return (self._loop,)

    def _rendered(self, prompt: ChatPrompt, image: Image.Image) -> Rendered:
        ids = self._captioner.placeholder_ids(prompt)
        picture = self._captioner.padded(image)
        rendered: Rendered = self._loop.render({"prompt_token_ids": ids, "multi_modal_data": {"image": picture}})
        return rendered

    def _warm_up(self, prompt: str, ref: str) -> None:
        """Decode two tokens, and check that vLLM sees the tokens that our own engine sees.

        vLLM compiles some functions at the first request that needs them; here rather than for a client.

        Raises:
            ModelError: it sees others.
            DecodingError: vLLM has failed.
        """
        image = Image.new("RGB", (BLANK_SIDE, BLANK_SIDE))
        rendered = self._rendered(prompt, image)
        expected = self._captioner.prompt_ids(prompt, self._captioner.inputs(image))
        if list(rendered["prompt_token_ids"]) != expected:
            raise ModelError(
                f"vLLM sees {len(rendered['prompt_token_ids'])} other tokens in a prompt for {ref!r} than the"
                f" {len(expected)} with which the model was trained",
                "use serve.engine: jsfree",
            )
        decoding = Decoding(temperature=1, top_p=0.9, top_k=5, max_new_tokens=2)
        request = Request("warm-up", None, prompt, 0.0, 0, decoding, alternatives=1, presence_penalty=0.1)
        (future,) = self._loop.submit([request], rendered, None)
        future.result()


def _require_hardware(gpus: float) -> None:
    """Check that vLLM was built for the hardware of the replica.

    Raises:
        ConfigError: it was not.
    """
    from vllm.platforms import current_platform

    if gpus and current_platform.is_cpu():
        raise ConfigError("the installed vLLM runs on CPUs only", "install its package for GPUs, or set 'gpus' to 0")
    if not gpus and not current_platform.is_cpu():
        raise ConfigError(
            "serve.engine: 'vllm' needs a GPU for each replica: the installed vLLM does not run on CPUs",
            "set serve.before.gpus and serve.after.gpus, or serve.engine: jsfree",
        )
