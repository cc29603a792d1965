"""Arguments of vLLM for this project's settings and requests, and what vLLM cannot answer. Does not import vLLM.

Where a meaning differs, ours holds: stop strings are found here, in the text that this project decodes, and suppressed
tokens get a bias of minus infinity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jsfree.config import RunConfig
from jsfree.decoding.requests import Drawn, Request, TokenLogp
from jsfree.models.loading import Captioner
from serve.http.protocol import Question

MIN_TEMPERATURE = 0.01
"""vLLM's own minimum, apart from 0."""
MAX_ALTERNATIVES = 20
"""Most ``top_logprobs`` of a request."""
SPARE_ALTERNATIVES = 8
"""More alternatives than a request asks for, since suppressed tokens may be among them."""
CPU_KV_CACHE_GIB = 1.0
GPU_SHARE = 0.9
"""Fraction of a replica's share of a GPU's memory that vLLM uses; the rest is for the CLIP model and CUDA's context."""
REMEDY = "a server with 'serve.engine: jsfree' can do that"
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Defaults of vLLM's variables: no report of usage to its makers, and as many threads as the replica reserves CPUs."""


def engine_arguments(config: RunConfig, folder: Path, captioner: Captioner, gpus: float) -> dict[str, Any]:
    """Arguments of vLLM's ``AsyncEngineArgs``.

    Args:
        config: the run's settings.
        folder: the model, in the format of its family's checkpoints.
        captioner: the same model, without weights.
        gpus: GPUs of the replica; 0 for the CPU.
    """
    serve = config.serve
    kv_cache_gib = serve.kv_cache_gib if gpus else serve.kv_cache_gib or CPU_KV_CACHE_GIB
    # What an image processor returns besides pixels does not concern vLLM.
    options = {name: value for name, value in captioner.family.image_options.items() if not name.startswith("return_")}
    return {
        "model": str(folder),
        "dtype": config.captioner.dtype,
        "load_format": "safetensors",
        "generation_config": "vllm",
        "max_model_len": -1,
        "max_num_seqs": serve.slots,
        "max_logprobs": MAX_ALTERNATIVES + SPARE_ALTERNATIVES,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "mm_processor_cache_gb": 0,
        "mm_processor_kwargs": options or None,
        "kv_cache_memory_bytes": None if kv_cache_gib is None else int(kv_cache_gib * 2**30),
        "gpu_memory_utilization": serve.vllm.gpu_memory_utilization or GPU_SHARE * min(gpus or 1.0, 1.0),
        "tensor_parallel_size": max(1, int(gpus)),
        "enforce_eager": serve.vllm.enforce_eager or not gpus,
        "disable_log_stats": True,
        "enable_log_requests": False,
    }


def sampling_arguments(request: Request, captioner: Captioner) -> dict[str, Any]:
    """Arguments of vLLM's ``SamplingParams`` for a request without a hallucination ratio.

    Truncation is the same in both: temperature, then top-k, then top-p of what remains. Penalties concern the tokens of
    the caption, not those of the prompt. Log-probabilities are those of the model, before temperature, truncation and
    penalties; suppressed tokens count.
    """
    decoding = request.decoding
    return {
        "temperature": max(decoding.temperature, MIN_TEMPERATURE) if decoding.temperature else 0.0,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "seed": request.noise_key & (2**63 - 1),
        "max_tokens": decoding.max_new_tokens,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "logprobs": None if request.alternatives is None else request.alternatives + SPARE_ALTERNATIVES,
        "logit_bias": dict.fromkeys(captioner.suppressed_ids, -math.inf),
        "ignore_eos": True,
        "stop_token_ids": sorted(captioner.eos_ids),
        "detokenize": False,
    }


def unsupported(question: Question) -> tuple[str, str] | None:
    """The field of a request for which vLLM has no answer, and a message for the client; None if it can answer."""
    if question.image is None:
        return "messages", f"this model answers only messages with an image; {REMEDY}"
    if question.ratio > 0:
        return "hallucination_ratio", f"'hallucination_ratio' must be 0 for this model; {REMEDY}"
    if question.views is not None and question.views > 1:
        return "views", f"'views' must be 1 for this model; {REMEDY}"
    return None


def drawn_tokens(
    request: Request,
    first: int,
    token_ids: Iterable[int],
    logprobs: Iterable[Mapping[int, Any]] | None,
    suppressed: frozenset[int],
) -> list[Drawn]:
    """Tokens that vLLM has drawn.

    Args:
        request: the request.
        first: number of its tokens before them.
        token_ids: the tokens.
        logprobs: for each token vLLM's ``Logprob`` by token id: of the token, and of the most probable ones.
        suppressed: tokens that are no alternatives, since they are never drawn.
    """
    ids = list(token_ids)
    if request.alternatives is None or logprobs is None:
        return [Drawn(request.request_id, first + number, token, None) for number, token in enumerate(ids)]
    drawn = []
    for number, (token, step) in enumerate(zip(ids, logprobs, strict=True)):
        ranked = sorted(
            ((each.logprob, other) for other, each in step.items() if other not in suppressed), reverse=True
        )
        alternatives = tuple((other, logp) for logp, other in ranked[: request.alternatives])
        logp = TokenLogp(token, step[token].logprob, alternatives)
        drawn.append(Drawn(request.request_id, first + number, token, logp))
    return drawn
