"""Agreement of greedy captions of a published model by jsfree, transformers and vLLM.

    make interop           (or: python benchmarks/interop.py --peers PYTHON [--model FOLDER] [--scenes 50])

``PYTHON`` is the interpreter of a second environment, with vLLM built for CPUs and without jsfree, in which
``interop_peers.py`` runs. Without ``--model``, MiniWorld's shipped captioner is published into a temporary folder. The
result is written to ``benchmarks/results/interop_<date>_<hardware>.json`` and printed as the last line. The exit code
is 1 if too few captions agree in float32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import command_line, publish

from jsfree import config as configuration
from jsfree.config import RunConfig
from jsfree.evaluation.statistics import wilson
from jsfree.images.sources import evaluation_samples
from jsfree.models.loading import load_captioner
from jsfree.models.saving import publish_captioner
from jsfree.schemas import Sample
from jsfree.stages.captioning import CaptionWriter

PEERS = Path(__file__).parent / "interop_peers.py"
TARGET = 0.95
DTYPES = ("float32", "bfloat16")
SHOWN = 3
"""Differing captions of a peer that are written to the result."""


def main() -> None:
    """Caption the scenes with each program, compare, write and print the result."""
    arguments = parse()
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as directory:
        model = arguments.model.resolve() if arguments.model else shipped(Path(directory) / "model")
        figures = measured(model, arguments, Path(directory))
    figures["model"] = str(arguments.model) if arguments.model else "miniworld:captioner, published"
    loads.append(os.getloadavg()[0])
    publish("interop", {}, figures, loads)
    shares = {name: found["share"] for name, found in figures["float32"].items()}
    if min(shares.values()) < TARGET:
        raise SystemExit(f"error: fewer than {TARGET:.0%} of the float32 captions agree: {shares}")


def parse() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--peers", type=Path, required=True, help="python of the environment with vLLM")
    parser.add_argument("--model", type=Path, help="folder of a published model, such as runs/x/round-1/model")
    parser.add_argument("--scenes", type=int, default=50)
    return parser.parse_args()


def shipped(folder: Path) -> Path:
    """Publish the shipped captioner as a round publishes its model."""
    captioner = load_captioner("miniworld:captioner")
    publish_captioner(captioner.model, captioner.processor, folder)
    return folder


def measured(model: Path, arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Agreement of each peer with jsfree, by dtype."""
    weights = hashlib.sha256((model / "checksums.json").read_bytes()).hexdigest()
    figures: dict[str, Any] = {"scenes": arguments.scenes, "target": TARGET, "checksums_sha256": weights}
    for dtype in DTYPES:
        settings = config(dtype, arguments.scenes)
        samples = evaluation_samples(settings)
        ours = captions(settings, model, samples)
        theirs = ask_peers(arguments.peers, model, settings, samples, directory)
        figures[dtype] = {name: agreement(ours, texts) for name, texts in theirs["captions"].items()}
        figures["versions"] = theirs["versions"]
    return figures


def config(dtype: str, scenes: int) -> RunConfig:
    """MiniWorld's settings with a dtype, for the first test scenes."""
    return configuration.load(None, [f"captioner.dtype={dtype}", f"evaluate.source.count={scenes}"])


def captions(settings: RunConfig, model: Path, samples: Sequence[Sample]) -> list[str]:
    """jsfree's greedy captions, as in the evaluation of a run."""
    written = CaptionWriter(settings, str(model), "m1", "greedy")(samples)
    if len(written.rows) != len(samples):
        raise SystemExit(f"error: {written.errors[0]['message']}")
    return [row["text"] for row in written.rows]


def ask_peers(
    python: Path, model: Path, settings: RunConfig, samples: Sequence[Sample], directory: Path
) -> dict[str, Any]:
    """Captions of the same images with the same prompt by the peers, and their versions."""
    pictures = []
    for number, sample in enumerate(samples):
        picture = directory / f"{number}.png"
        picture.write_bytes(sample["image"]["bytes"] or b"")
        pictures.append(str(picture))
    question = {
        "model": str(model),
        "dtype": settings.captioner.dtype,
        "max_new_tokens": settings.evaluate.modes["greedy"].max_new_tokens,
        "prompt": settings.prompt,
        "pictures": pictures,
    }
    answer = directory / "answer.json"
    subprocess.run(
        [python, PEERS, answer],
        input=json.dumps(question),
        text=True,
        encoding="utf-8",
        check=True,
        env=environment(directory),
    )
    captioned: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return captioned


def environment(directory: Path) -> dict[str, str]:
    """The environment of vLLM: no GPU, no network, no further processes."""
    return {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(directory / "vllm"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }


def agreement(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, Any]:
    """Share of captions with equal text, its 95 % interval, and examples of differing captions."""
    pairs = list(zip(ours, theirs, strict=True))
    differing = [{"scene": at, "jsfree": a, "peer": b} for at, (a, b) in enumerate(pairs) if a != b]
    same = len(pairs) - len(differing)
    interval = wilson(same, len(pairs))
    return {
        "same": same,
        "share": same / len(pairs),
        "interval": [interval.low, interval.high],
        "differing": differing[:SHOWN],
    }


if __name__ == "__main__":
    main()
