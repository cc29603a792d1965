"""Agreement of greedy captions of published models by jsfree, transformers and vLLM.

    make interop    (or: python benchmarks/interop.py --peers PYTHON [--model FOLDER] [--scenes 50] [--families A B])

``PYTHON`` is the interpreter of a second environment, with vLLM built for CPUs and without jsfree, in which
``interop_peers.py`` runs. Without ``--model``, MiniWorld's shipped captioner is published into a temporary folder. The
texts of its captions are compared, also those of the two engines of ``jsfree serve`` (``interop_served.py``), which
serve the shipped captioners where they are. Then a tiny random model of each other family is published, whose captions
depend on every position and every patch, and the tokens of its captions of images of different sizes are compared. The
result is written to ``benchmarks/results/interop_<date>_<hardware>.json`` and printed as the last line. The exit code
is 1 if too few captions agree in float32.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from measuring import command_line, publish
from PIL import Image

from jsfree import config as configuration
from jsfree.config import Decoding, RunConfig
from jsfree.decoding.engine import DualPathEngine
from jsfree.decoding.requests import Request
from jsfree.decoding.workload import Workload
from jsfree.evaluation.statistics import wilson
from jsfree.images.sources import evaluation_samples
from jsfree.models.loading import Captioner, load_captioner
from jsfree.models.saving import publish_captioner
from jsfree.schemas import Sample
from jsfree.stages.captioning import CaptionWriter
from tests.support.families import checks
from tests.support.families.builders import BUILDERS, GRIDS, llava_onevision

PEERS = Path(__file__).parent / "interop_peers.py"
SERVED = Path(__file__).parent / "interop_served.py"
SERVED_MODELS = ("miniworld:captioner", "miniworld:qwen-captioner")
SERVED_FAMILY = "LLaVA-NeXT"
"""A random model for the served engines, whose images have several tiles, and which would draw any token."""
MAX_LOGPROB_DIFFERENCE = 1e-3
"""Of a trained model: vLLM's log-probabilities count suppressed tokens, to which only a random model gives much."""
TARGET = 0.95
DTYPES = ("float32", "bfloat16")
FAMILIES = ("Qwen2.5-VL", "Qwen3-VL", "LLaVA-NeXT", "LLaVA-OneVision")
"""The families with M-RoPE or several tiles; MiniWorld's captioner is a LLaVA with one tile."""
AS_PUBLISHED = {"LLaVA-OneVision": partial(llava_onevision, tiles=9, grids=[*GRIDS, [64, 64]])}
"""Models with a setting that vLLM does not read but sets to the value of the published models."""
PICTURES, TOKENS = 30, 16
"""Images of a random model, and tokens of each caption."""
SHOWN = 3
"""Differing captions of a peer that are written to the result."""


def main() -> None:
    """Caption the scenes with each program, compare, write and print the result."""
    arguments = parse()
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as directory:
        model = arguments.model.resolve() if arguments.model else shipped(Path(directory) / "model")
        figures = measured(model, arguments, Path(directory))
        figures["served"] = served_engines(arguments, Path(directory))
        figures["families"] = {name: of_family(name, arguments.peers, Path(directory)) for name in arguments.families}
    figures["model"] = str(arguments.model) if arguments.model else "miniworld:captioner, published"
    loads.append(os.getloadavg()[0])
    publish("interop", {}, figures, loads)
    shares = {name: found["share"] for name, found in figures["float32"].items()}
    for family, peers in figures["families"].items():
        shares |= {f"{family}: {name}": found["share"] for name, found in peers.items()}
    shares |= {f"served {model}": found["share"] for model, found in figures["served"].items()}
    if min(shares.values()) < TARGET:
        raise SystemExit(f"error: fewer than {TARGET:.0%} of the float32 captions agree: {shares}")
    served = figures["served"].items()
    differing = {model: each["checks"] for model, each in served if not passed(each["checks"], model in SERVED_MODELS)}
    if differing:
        raise SystemExit(f"error: served by vLLM, a model behaves otherwise than by our own engine: {differing}")


def parse() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--peers", type=Path, required=True, help="python of the environment with vLLM")
    parser.add_argument("--model", type=Path, help="folder of a published model, such as runs/x/round-1/model")
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--families", nargs="*", choices=list(BUILDERS), default=FAMILIES)
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
        pictures = [sample["image"]["bytes"] or b"" for sample in samples]
        length = settings.evaluate.modes["greedy"].max_new_tokens
        question = {"model": str(model), "dtype": dtype, "max_new_tokens": length, "prompt": settings.prompt}
        theirs = ask_peers(arguments.peers, {**question, "suppressed": [], "end": []}, pictures, directory)
        figures[dtype] = {
            name: agreement(ours, [each["text"] for each in captions]) for name, captions in theirs["captions"].items()
        }
        figures["versions"] = theirs["versions"]
    return figures


def of_family(name: str, peers: Path, directory: Path) -> dict[str, Any]:
    """Agreement of each peer with jsfree on a tiny random model of a family, in float32."""
    captioner = AS_PUBLISHED.get(name, BUILDERS[name])()
    folder = directory / name
    publish_captioner(captioner.model, captioner.processor, folder)
    question = {
        "model": str(folder),
        "dtype": "float32",
        "max_new_tokens": TOKENS,
        "prompt": checks.PROMPT,
        "suppressed": list(captioner.suppressed_ids),  # which a trained model would not draw
        "end": sorted(captioner.eos_ids),
    }
    contents = [png_bytes(checks.picture(number)) for number in range(PICTURES)]
    theirs = ask_peers(peers, question, contents, directory)
    ours = tokens(captioner)
    return {peer: agreement(ours, [each["ids"] for each in captions]) for peer, captions in theirs["captions"].items()}


def served_engines(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Agreement of captions by the two engines of ``jsfree serve`` in float32, and their checks, by model."""
    settings = config("float32", arguments.scenes)
    scenes = [sample["image"]["bytes"] or b"" for sample in evaluation_samples(settings)]
    length = settings.evaluate.modes["greedy"].max_new_tokens
    asked = {ref: ((ref, settings.prompt, length), scenes) for ref in SERVED_MODELS}
    captioner = BUILDERS[SERVED_FAMILY]()
    publish_captioner(captioner.model, captioner.processor, directory / "served")
    pictures = [png_bytes(checks.picture(number)) for number in range(PICTURES)]
    asked[f"{SERVED_FAMILY}, random"] = ((str(directory / "served"), checks.PROMPT, TOKENS), pictures)
    figures = {}
    for name, ((model, prompt, longest), contents) in asked.items():
        question = {"model": model, "dtype": "float32", "prompt": prompt, "max_new_tokens": longest}
        answer = ask_peers(arguments.peers, question, contents, directory, SERVED)
        captions = answer["captions"]
        figures[name] = {**agreement(captions["jsfree"], captions["vllm"]), "checks": answer["checks"]}
    return figures


def passed(checks: Mapping[str, Any], trained: bool) -> bool:
    """Whether vLLM behaves as our own engine does."""
    return (
        checks["streams_equal_to_plain"] >= TARGET * checks["streams"]
        and (not trained or checks["largest_difference_of_logprobs"] <= MAX_LOGPROB_DIFFERENCE)
        and checks["cancelling_frees"]
        and all(checks["refused"].values())
    )


def tokens(captioner: Captioner) -> list[list[int]]:
    """Tokens of jsfree's greedy captions, without the end token."""
    decoding = Decoding(temperature=0, max_new_tokens=TOKENS)
    requests = [
        Request(str(number), captioner.inputs(checks.picture(number)), checks.PROMPT, 0.0, number, decoding)
        for number in range(PICTURES)
    ]
    captions = DualPathEngine(captioner, Workload(8, captions_per_image=1)).decode(requests)
    return [[token for token in caption.token_ids if token not in captioner.eos_ids] for caption in captions]


def png_bytes(picture: Image.Image) -> bytes:
    """An image in a format without loss."""
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()


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
    python: Path, question: Mapping[str, Any], contents: Sequence[bytes], directory: Path, script: Path = PEERS
) -> dict[str, Any]:
    """Captions of some images with the same prompt by the peers, and what else the script answers.

    Args:
        python: interpreter of the peers' environment.
        question: what the script reads, without the pictures.
        contents: the images' files.
        directory: for temporary files.
        script: ``PEERS`` or ``SERVED``.
    """
    pictures = []
    for number, content in enumerate(contents):
        picture = directory / f"{number}.png"
        picture.write_bytes(content)
        pictures.append(str(picture))
    answer = directory / "answer.json"
    subprocess.run(
        [python, script, answer],
        input=json.dumps({**question, "pictures": pictures}),
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


def agreement(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, Any]:
    """Share of equal captions, its 95 % interval, and examples of differing captions."""
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
