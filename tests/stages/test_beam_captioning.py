"""Captions by beam search."""

import pytest
import torch

from jsfree import config as configuration
from jsfree.images.sources import evaluation_samples
from jsfree.stages.beam_captioning import BeamCaptionWriter
from jsfree.stages.captioning import CaptionWriter


@pytest.fixture(scope="module")
def config():
    settings = ["evaluate.source.count=4", "evaluate.modes.greedy.max_new_tokens=40", "generate.slots=4"]
    return configuration.load(None, settings)


@pytest.fixture(scope="module")
def samples(config):
    return list(evaluation_samples(config))


@pytest.mark.slow
def test_one_beam_writes_what_the_engine_decodes_greedily(config, samples):
    by_engine = CaptionWriter(config, "miniworld:captioner", "m0", "greedy")(samples).rows
    by_beam = BeamCaptionWriter(config, "miniworld:captioner", "m0", "greedy", beams=1)(samples).rows
    assert [row["text"] for row in by_beam] == [row["text"] for row in by_engine]
    assert [row["token_ids"] for row in by_beam] == [row["token_ids"] for row in by_engine]
    assert [row["finish"] for row in by_beam] == [row["finish"] for row in by_engine]


@pytest.mark.slow
def test_beams_find_captions_that_the_model_finds_at_least_as_probable(config, samples):
    def logp(writer, row, image):
        ids = writer.captioner.prompt_ids(row["prompt"], image)
        whole = torch.tensor([[*ids, *row["token_ids"]]])
        with torch.inference_mode():
            logits = writer.captioner.model(input_ids=whole, **writer.captioner.batch([image])).logits
            logps = torch.log_softmax(writer.captioner.suppress(logits.float()), -1)
        return sum(logps[0, len(ids) + n - 1, token].item() for n, token in enumerate(row["token_ids"]))

    from jsfree.images.decoding import load_image

    narrow = BeamCaptionWriter(config, "miniworld:captioner", "m0", "greedy", beams=1)
    wide = BeamCaptionWriter(config, "miniworld:captioner", "m0", "greedy", beams=4)
    images = [narrow.captioner.inputs(load_image(row["image"], config.evaluate.source).image) for row in samples]
    scores = [
        [
            logp(writer, row, image) / len(row["token_ids"])
            for row, image in zip(writer(samples).rows, images, strict=True)
        ]
        for writer in (narrow, wide)
    ]
    assert sum(scores[1]) > sum(scores[0])


def test_unreadable_images_become_error_rows(config, samples):
    broken = {**samples[0], "image": {**samples[0]["image"], "bytes": b"no image", "sha256": None}}
    output = BeamCaptionWriter(config, "miniworld:captioner", "m0", "greedy", beams=2)([broken, samples[1]])
    assert [row["sample_id"] for row in output.rows] == [samples[1]["sample_id"]]
    assert output.errors[0]["sample_id"] == samples[0]["sample_id"]
