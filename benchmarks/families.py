"""Measures how exactly every model family is decoded and trained, and writes the table of ``docs/models.md``.

    make families

Each family is a tiny random model of transformers' real class with its real processor, in float32 on a CPU. The oracle
is transformers' own full forward without a cache. Exits with an error if a family is not exact.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.support.families import checks
from tests.support.families.builders import BUILDERS

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- begin of the table by make families -->", "<!-- end of the table -->"
HEADER = (
    "| family | captions equal to Algorithm 1 | packed log-probabilities, largest difference | gradients, relative |"
    " cached features | prompt without image | published and loaded: logits |",
    "|---|---|---|---|---|---|---|",
)
SUMS, GRADIENTS, LOGITS = 1e-3, 1e-5, 1e-5
"""Limits of the differences."""


def main() -> None:
    """Measure all families."""
    torch.set_num_threads(1)
    rows, failed = list(HEADER), []
    for name, build in BUILDERS.items():
        started = time.perf_counter()
        row, exact = measured(name, build)
        rows.append(row)
        failed += [] if exact else [name]
        print(f"{row} ({time.perf_counter() - started:.0f} s)", flush=True)
    write("\n".join(rows))
    if failed:
        raise SystemExit(f"not exact: {', '.join(failed)}")


def measured(name: str, build: object) -> tuple[str, bool]:
    """The row of a family, and whether it is exact."""
    captioner = build()  # type: ignore[operator]
    agreement, prompts = checks.engine_agreement(captioner), checks.prompts(captioner)
    with tempfile.TemporaryDirectory() as folder:
        reloaded = checks.reloaded(captioner, Path(folder))
    packing = checks.packing(captioner)
    same = prompts.without_image and prompts.with_image
    row = (
        f"| {name} | {agreement.identical} of {agreement.captions} | {packing.sums:.0e} | {packing.gradients:.0e} |"
        f" {packing.cached:.0e} | {'equal' if same else 'differs'} | {reloaded:.0e} |"
    )
    exact = agreement.identical == agreement.captions < 3 * agreement.distinct and packing.trained_projector and same
    small = packing.sums < SUMS and packing.cached < SUMS and packing.gradients < GRADIENTS
    return row, exact and small and reloaded < LOGITS and prompts.logits < LOGITS


def write(table: str) -> None:
    """Replace the table in the guide."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
