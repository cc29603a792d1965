"""Memory and time of listing a source and of reading images inside Parquet, against ``json.loads``.

    python benchmarks/listing.py [--only CASE] [--small]

Each case runs in its own process. Its memory is the peak of resident memory (Linux's VmHWM) beyond the size after
imports. Inputs are generated in a temporary folder: a LLaVA JSON of 665,000 rows, and Parquet tables of 10,000,000
paths and of 12 GB of images (PNG files padded with zeros, so that they take little on disk) in small and in large row
groups. The result is written to ``benchmarks/results/listing_<date>_<hardware>.json``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from measuring import MemoryGrowth, command_line, own_process, publish
from PIL import Image

from jsfree.config import RunConfig
from jsfree.images.decoding import load_image
from jsfree.images.sources import training_samples
from jsfree.run.folder import Folder
from ray_jobs.stages.generate import write_samples

COUNT = 50_000
"""Images a round, where not all are drawn."""
PARTLY_DRAWN = ("llava_json", "paths")
READ, READERS = 400, 4
ROWS = {"llava_json": 665_000, "paths": 10_000_000, "images": 80_000, "images, large groups": 80_000}
GROUPS = {"paths": 1_000_000, "images": 100, "images, large groups": 2_000}
IMAGE_BYTES = 150_000
CASES = {
    "json.loads": "llava_json",
    "llava_json": "llava_json",
    "paths": "paths",
    "paths, all drawn": "paths",
    "images": "images",
    "images, large groups": "images, large groups",
}
"""The input of each case."""
TARGETS = {
    "llava_json": 0.4,
    "paths": 1.0,
    "paths, all drawn": 1.0,
    "images": 1.0,
    "images, large groups": 1.0,
}
"""GB of growth."""
SLOWER = 1.5
"""Time of listing the JSON file over that of ``json.loads``, at most."""


def main() -> None:
    """Measure, compare, write and print."""
    parser = command_line(__doc__)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--small", action="store_true", help="a tenth of the rows, to try the script itself")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "FOLDER"), help=SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measured(arguments.child[0], Path(arguments.child[1]))))
        return
    loads, found = [os.getloadavg()[0]], {}
    with tempfile.TemporaryDirectory(prefix="listing-") as folder:
        made: set[str] = set()
        for case in [arguments.only] if arguments.only else CASES:
            source = CASES[case]
            if source not in made:
                _make(source, Path(folder), ROWS[source] // (10 if arguments.small else 1))
                made.add(source)
            found[case] = own_process(__file__, ["--child", case, folder])
            print(f"{case}: {json.dumps(found[case])}", file=sys.stderr)
    figures = {"cases": found, "targets_gb": TARGETS, "target_json_time": SLOWER}
    times = [found[case]["cpu_seconds"] for case in ("llava_json", "json.loads") if case in found]
    slower = {"median": times[0] / times[1], "target": SLOWER} if len(times) > 1 else {}
    publish("listing", {"llava_json_time_cost": slower}, figures, [*loads, os.getloadavg()[0]])
    exceeded = [case for case, limit in TARGETS.items() if case in found and found[case]["growth_gb"] > limit]
    if exceeded or (slower and slower["median"] > SLOWER):
        raise SystemExit(f"beyond the target: {', '.join(exceeded) or 'time of llava_json'}")


def measured(case: str, folder: Path) -> dict[str, float]:
    """Run a case in this process; its memory growth, seconds and images."""
    work: Callable[[], int] = lambda: _literal(folder) if case == "json.loads" else _list(case, folder)  # noqa: E731
    pa.array([""])  # pyarrow imports pandas with its first array
    growth = MemoryGrowth()
    started, cpu = time.perf_counter(), time.process_time()
    images = work()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"growth_gb": growth.bytes() / 1e9, "seconds": seconds, "cpu_seconds": cpu, "images": images}


def _list(case: str, folder: Path) -> int:
    """Draw a round's samples; images inside tables are written, and some of them read."""
    kind = "llava_json" if case == "llava_json" else "parquet"
    path = folder / ("mix.json" if kind == "llava_json" else f"{CASES[case]}.parquet")
    settings = RunConfig.model_validate(
        {
            "source": {"kind": kind, "path": str(path), "count": COUNT if case in PARTLY_DRAWN else None},
            "evaluate": {"source": {"kind": "miniworld", "split": "test", "count": 2}},
        }
    )
    samples = training_samples(settings, 1)
    if case == "llava_json":
        return len(samples)
    if case.startswith("paths"):
        return sum(1 for _ in samples)
    write_samples(samples, Folder(str(folder / "samples" / case)), 256)
    with ThreadPoolExecutor(READERS) as readers:
        some = (sample["image"] for sample in islice(samples, READ))
        return sum(1 for _ in readers.map(lambda image: load_image(image, settings.source), some))


def _literal(folder: Path) -> int:
    """The naive listing: the whole file at once, with an object per image."""
    unique: dict[str, str] = {}
    for row in json.loads((folder / "mix.json").read_bytes()):
        if row.get("image"):
            name = posixpath.normpath(row["image"])
            unique.setdefault(name, f"{folder}/{name}")

    def rank(name: str) -> tuple[bytes, str]:
        return hashlib.blake2b(f"0/{name}".encode(), digest_size=16).digest(), name

    return len(sorted(unique, key=rank)[:COUNT])


def _make(source: str, folder: Path, rows: int) -> None:
    if source == "llava_json":
        with (folder / "mix.json").open("w") as file:
            file.writelines(_llava(rows))
        return
    columns = _paths if source == "paths" else _images
    schema = pa.schema({"image": pa.string() if source == "paths" else pa.binary()})
    with pq.ParquetWriter(folder / f"{source}.parquet", schema, compression="zstd") as writer:
        group = GROUPS[source]
        for start in range(0, rows, group):
            cells = columns(range(start, min(rows, start + group)))
            writer.write_table(pa.table({"image": cells}, schema=schema), row_group_size=group)


def _llava(rows: int) -> Iterator[str]:
    """Rows of 730 bytes, many of them with the same image, as in LLaVA-1.5's mix."""
    said = "the person in the image holds a red umbrella and walks along a wet street; and " * 7
    for row in range(rows):
        talk = [{"from": "human", "value": f"<image>\nWhat is in row {row}?"}, {"from": "gpt", "value": said}]
        named = {} if row % 16 == 0 else {"image": f"coco/train2017/{row * 7919 % 350_000:012d}.jpg"}
        yield f"{',' if row else '['}\n{json.dumps({'id': str(row), **named, 'conversations': talk})}"
    yield "]"


def _paths(rows: range) -> list[str]:
    return [f"coco/train2017/{row:012d}.jpg" for row in rows]


def _images(rows: range) -> list[bytes]:
    """Distinct PNG files, padded with zeros."""

    def image(row: int) -> bytes:
        sink = io.BytesIO()
        Image.new("RGB", (16, 16), (row % 256, row // 256 % 256, row // 65_536)).save(sink, "PNG")
        return sink.getvalue().ljust(IMAGE_BYTES, b"\0")

    return [image(row) for row in rows]


if __name__ == "__main__":
    main()
