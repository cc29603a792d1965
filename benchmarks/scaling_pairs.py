"""Memory and time of selection on the driver and of a training worker, which handle all pairs of a round.

    python benchmarks/scaling.py --part select [--rows 100000 1000000] [--repeat 1]
    python benchmarks/scaling.py --part training [--pairs 10000 200000]

Pairs are synthetic, of the size of LLaVA's: 9 sentences and 150 tokens a caption. Each measurement runs the real code
on real shards in its own process. Growth is the peak of resident memory (Linux's VmHWM) beyond the size after imports.

- select: ``select_shards`` with the default settings (splits 4 to 7 of 10), and once with an image of 100 kB in each
  row;
- training: one worker of ``train`` with MiniWorld's captioner: its index of all pairs, its table of reference
  log-probabilities, and ``STEPS`` optimizer steps of 64 pairs. The reference is given, not computed, and all pairs
  have the same image file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout need not be installed

from measuring import MemoryGrowth, own_process, spread

from jsfree import schemas
from jsfree.config import RunConfig, Select
from jsfree.run.folder import Folder, shard_name
from jsfree.run.streaming import scan
from jsfree.stages.shard_selection import select_shards

SENTENCES, TOKENS = 9, 150
FIRST_TOKEN, VOCABULARY = 10, 500
"""Range of MiniWorld's text tokens."""
BLOCK = 20_000
EMBEDDED_ROWS, EMBEDDED_BYTES = 20_000, 100_000
STEPS, PAIRS_PER_STEP = 5, 64
GROWTH_GB, LINEAR, WORKER = 0.7, 1.15, 1.10
PROMPT = "Describe image in detail."


def select(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Selection among scored pairs, by their number."""
    found: dict[int, list[dict[str, float]]] = {rows: [] for rows in sorted(arguments.rows)}
    with TemporaryDirectory(prefix="scaling-") as folder:
        for rows in found:
            run_part("scored", f"{folder}/{rows}", rows)
        for _ in range(arguments.repeat):
            for rows, runs in found.items():
                runs.append(run_part("selected", f"{folder}/{rows}", rows))
                print(f"select, {rows} rows:", runs[-1], flush=True)
        shutil.rmtree(f"{folder}/{max(found)}")
        run_part("embedded", f"{folder}/embedded", EMBEDDED_ROWS)
        embedded = run_part("selected", f"{folder}/embedded", EMBEDDED_ROWS)
        print("select, images embedded:", embedded, flush=True)
    least, most = min(found), max(found)
    times = {
        name: [b[name] / most / (a[name] / least) for a, b in zip(found[least], found[most], strict=True)]
        for name in ("cpu_seconds", "seconds")
    }
    growth = [run["growth_gb"] for run in found[most]]
    ratios = {
        f"select_cpu_a_row_{most}_over_{least}_cost": spread(times["cpu_seconds"], LINEAR),
        f"select_seconds_a_row_{most}_over_{least}_cost": spread(times["seconds"], LINEAR),
        f"select_growth_gb_{most}_rows_cost": spread(growth, GROWTH_GB),
    }
    sizes = {f"{rows} rows": runs for rows, runs in found.items()}
    return ratios, {**sizes, f"{EMBEDDED_ROWS} rows with images of {EMBEDDED_BYTES} bytes": embedded}


def training(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """A worker that trains on selected pairs, by their number."""
    found = {}
    for pairs in sorted(arguments.pairs):
        with TemporaryDirectory(prefix="scaling-") as folder:
            run_part("prepared", folder, pairs)
            found[pairs] = run_part("trained", folder, pairs)
            print(f"training, {pairs} pairs:", found[pairs], flush=True)
    least, most = min(found), max(found)
    cost = found[most]["peak_gb"] / found[least]["peak_gb"]
    more = found[most]["peak_gb"] - found[least]["peak_gb"]
    ratios = {f"training_worker_memory_{most}_over_{least}_cost": spread([cost], WORKER)}
    figures = {f"{pairs} pairs": each for pairs, each in found.items()}
    return ratios, {
        "what": "one real worker on CPU, MiniWorld's captioner; the reference is given; "
        f"{STEPS} steps of {PAIRS_PER_STEP} pairs",
        **figures,
        "bytes_a_pair_more": 1e9 * more / (most - least),
    }


def run_part(part: str, folder: str, rows: int) -> dict[str, float]:
    """The result of a part, run in its own process."""
    result: dict[str, float] = own_process(__file__, [part, folder, str(rows)])
    return result


class Usage:
    """Time and memory of this process since construction."""

    def __init__(self) -> None:
        self._growth = MemoryGrowth()
        self._started = time.perf_counter(), time.process_time()

    def figures(self) -> dict[str, float]:
        """The figures so far."""
        before, growth, (wall, cpu) = self._growth.start, self._growth.bytes(), self._started
        return {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "before_gb": before / 1e9,
            "peak_gb": (before + growth) / 1e9,
            "growth_gb": growth / 1e9,
        }


def scored(folder: str, rows: int, image: str | bytes = "/data/coco/image.jpg") -> dict[str, float]:
    """Write shards of scored pairs."""
    path, rng, size = Path(folder) / "scored", np.random.default_rng(rows), RunConfig().shard_rows
    path.mkdir(parents=True)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnoprstuvwy"), 6)) for _ in range(4_000)])
    sentences = pa.array(" ".join(each).capitalize() + "." for each in rng.choice(words, (20_000, 11)))
    block = BLOCK if isinstance(image, str) else size
    for start in range(0, rows, block):
        table = scored_rows(start, min(block, rows - start), sentences, rng, image)
        for at in range(0, table.num_rows, size):
            part = table.slice(at, size)
            pq.write_table(part, path / shard_name((start + at) // size), compression="zstd")
    return {}


def scored_rows(first: int, rows: int, sentences: pa.Array, rng: np.random.Generator, image: str | bytes) -> pa.Table:
    """Scored pairs numbered from ``first``, generated by columns."""
    ids = [f"coco/train2017/{number:012d}.jpg" for number in range(first, first + rows)]
    low, high = (captions(rows, sentences, rng, ratio) for ratio in (0.0, 0.5))
    scores = [np.asarray(caption.field("score")) for caption in (low, high)]
    place = [image] * rows if isinstance(image, str) else None
    content = None if isinstance(image, str) else [rng.bytes(EMBEDDED_BYTES) for _ in range(rows)]
    images = {"id": ids, "uri": place or [None] * rows, "bytes": content or [None] * rows, "sha256": [None] * rows}
    columns = {
        "sample_id": [schemas.sample_id(each, PROMPT) for each in ids],
        "image": pa.StructArray.from_arrays(
            [pa.array(images[field.name], field.type) for field in schemas.IMAGE], fields=list(schemas.IMAGE)
        ),
        "prompt": [PROMPT] * rows,
        "low": low,
        "high": high,
        "seed": np.zeros(rows, np.int64),
        "inverted": scores[0] < scores[1],
        "gap": np.abs(scores[0] - scores[1]),
    }
    return pa.table(columns, schema=schemas.SCORED)


def captions(rows: int, sentences: pa.Array, rng: np.random.Generator, ratio: float) -> pa.StructArray:
    """Scored captions, 2 % of them truncated."""
    ends = np.arange(0, (rows + 1) * SENTENCES, SENTENCES, dtype=np.int32)
    said = sentences.take(pa.array(rng.integers(0, len(sentences), rows * SENTENCES)))
    scores = rng.normal(0.25 - 0.01 * ratio, 0.03, (rows, SENTENCES))
    tokens = pa.array(rng.integers(FIRST_TOKEN, VOCABULARY, rows * TOKENS, dtype=np.int32))
    token_ends = np.arange(0, (rows + 1) * TOKENS, TOKENS, dtype=np.int32)
    scored_sentences = pa.StructArray.from_arrays([said, pa.array(scores.ravel())], ["text", "score"])
    values = {
        "ratio": pa.array(np.full(rows, ratio)),
        "text": pc.binary_join(pa.ListArray.from_arrays(ends, said), " "),
        "token_ids": pa.ListArray.from_arrays(token_ends, tokens),
        "finish": pa.array(np.where(rng.random(rows) < 0.02, "length", "stop")),
        "sentences": pa.ListArray.from_arrays(ends, scored_sentences),
        "score": pa.array(scores.mean(1)),
    }
    fields = [pa.field(field.name, values[field.name].type) for field in schemas.SCORED_CAPTION]
    plain = pa.StructArray.from_arrays([values[field.name] for field in fields], fields=fields)
    return plain.cast(schemas.SCORED_CAPTION)


def embedded(folder: str, rows: int) -> dict[str, float]:
    """Write shards of scored pairs with their images."""
    return scored(folder, rows, b"")


def selected(folder: str, rows: int) -> dict[str, float]:
    """Select among the scored pairs, and check the order of the result."""
    target = Folder(f"{folder}/selected")
    target.remove()
    usage = Usage()
    choice = select_shards(Folder(f"{folder}/scored"), target, Select(), 0, RunConfig().shard_rows)
    figures = usage.figures()
    parts = [(table["rank"], table["gap"]) for table in scan(target, schemas.SELECTED, ["rank", "gap"])]
    ranks, gaps = (np.concatenate(each) for each in zip(*parts, strict=True))
    if not (choice.facts["pairs"] == rows and (np.diff(ranks) == 1).all() and (np.diff(gaps) >= 0).all()):
        raise SystemExit("the selected pairs are not in order")
    return {**figures, "kept": len(ranks), "microseconds_a_row": 1e6 * figures["seconds"] / rows}


def prepared(folder: str, pairs: int) -> dict[str, float]:
    """Write selected pairs, keeping all, and a reference table for them."""
    from PIL import Image

    from jsfree.dpo import reference_logps
    from jsfree.dpo.pairs import PairIndex, PairTable
    from jsfree.models.loading import load_captioner

    Image.new("RGB", (64, 64), "teal").save(f"{folder}/image.png")
    scored(folder, pairs, f"{folder}/image.png")
    everything = Select(splits=1, first=1, last=1, keep_truncated=True)
    select_shards(Folder(f"{folder}/scored"), Folder(f"{folder}/selected"), everything, 0, RunConfig().shard_rows)
    shutil.rmtree(f"{folder}/scored")
    table = PairTable(Folder(f"{folder}/selected"))
    digest = PairIndex.of(table, load_captioner("miniworld:captioner")).digest
    origin = reference_logps.origin("given", "float32", "crop", digest)
    values = np.full(len(table), -300.0)
    logps = reference_logps.ReferenceLogps(chosen=values, rejected=values)
    reference_logps._write(Folder(f"{folder}/reference"), table, logps, origin)
    return {"pairs": len(table)}


class EnoughError(Exception):
    """Ends a training after ``STEPS`` steps."""


def trained(folder: str, pairs: int) -> dict[str, float]:
    """Train ``STEPS`` steps on the selected pairs."""
    import torch
    import torch.distributed as dist

    from jsfree import config as configuration
    from jsfree.dpo.loop import Folders, Hooks, Models, train
    from jsfree.dpo.pairs import PairTable

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    import deepspeed  # noqa: F401 - its memory counts as that of imports

    settings = {"pairs_per_step": PAIRS_PER_STEP, "pairs_per_worker": 2, "resources": {"replicas": 1}}
    run = configuration.build({"train": settings}, where="benchmark")

    def progress(history: Any, _: int) -> None:
        if len(history) == STEPS:
            raise EnoughError

    usage = Usage()
    table = PairTable(Folder(f"{folder}/selected"))
    folders = Folders(*(Folder(f"{folder}/{name}") for name in ("reference", "features", "model")))
    models = Models("miniworld:captioner", "given", "given")
    with suppress(EnoughError):
        train(run, table, models, folders, Hooks(progress, lambda *_: None, None), "cpu")
    if len(table) != pairs:
        raise SystemExit(f"{len(table)} pairs")
    return {**usage.figures(), "steps": STEPS}


PARTS: dict[str, Callable[[str, int], dict[str, float]]] = {
    each.__name__: each for each in (scored, embedded, selected, prepared, trained)
}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))))
