"""Compiled decoding steps for successive memory layouts."""

import copy
from dataclasses import replace

import pytest
import torch

from jsfree.decoding import attention
from jsfree.decoding.cache import CacheLayout
from jsfree.decoding.forward import Forward, Row
from jsfree.decoding.memory import kv_size

LAYOUT = CacheLayout(
    rows=2,
    image_rows=0,
    own_tokens=64,
    image_prefixes=0,
    readers=1,
    image_tokens=16,
    text_prefixes=1,
    text_tokens=16,
    group=1,
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_steps_are_compiled_for_every_layout(captioner, monkeypatch):
    """Counts the graphs passed to a fake backend, since torch's needs a compiler; a model of one layer."""
    from transformers import LlavaForConditionalGeneration

    real, compiled = torch.compile, []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda step, **options: real(step, backend=backend, **options))
    settings = copy.deepcopy(captioner.model.config)
    settings.text_config.num_hidden_layers = 1
    tiny = replace(captioner, model=LlavaForConditionalGeneration._from_config(settings).eval())
    attention.install(tiny)
    ids = torch.tensor([tiny.prompt_ids("Describe.", None)])
    layout, counts = replace(LAYOUT, group=kv_size(tiny).group), []
    for own in range(64, 64 + 3 * 32, 32):
        forward = Forward(tiny, replace(layout, own_tokens=own), "inductor")
        with torch.inference_mode():
            forward.cache.store_text_prefix(0, tiny.model(input_ids=ids, use_cache=True).past_key_values)
            for fill in (0, own // 3, own - 1):
                assert forward([Row(5, fill, 0), Row(6, fill, 0)]).isfinite().all()
        counts.append(len(compiled))
        compiled.clear()
    assert counts == [3] * 3
