"""The steps of the check in the order of importance, and their result."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import PACKAGES, versions

from gpu.running import Outcome, Runner, Step, preload
from gpu.scale import Scale

STEPS = (
    Step("device", "gpu.device:measure", 45),
    Step("exact-decoding", "gpu.exact_decoding:measure", 75),
    Step("exact-scoring", "gpu.exact_scoring:measure", 30),
    Step("exact-dpo", "gpu.exact_dpo:measure", 60),
    Step("generation-7b", "gpu.generation_speed:measure_7b", 150),
    Step("dpo-lora", "gpu.dpo_speed:measure_lora", 60),
    Step("dpo-layers", "gpu.dpo_speed:measure_layers", 60),
    Step("scoring", "gpu.scoring_speed:measure", 40),
    Step("generation-13b", "gpu.generation_speed:measure_13b", 75),
    Step("miniworld-round", "gpu.miniworld_round:measure", 110),
    Step("exact-flex", "gpu.exact_dpo:measure_flex", 60),
    Step("dpo-flex", "gpu.dpo_speed:measure_flex", 60),
    Step("exact-inductor", "gpu.exact_decoding:measure_inductor", 120),
)
FIRST = STEPS[0]
MIN_SECONDS = 10
"""A step is not started with less time."""
MORE_PACKAGES = ("torchvision", "triton", "accelerate", "timm", "pydantic", "sentencex", "pillow")


class Check:
    """Runs the steps within a time limit and writes the result after each."""

    def __init__(self, scale: Scale, folder: Path, seconds: float, kit: Sequence[str]) -> None:
        self._scale, self._folder = scale, folder
        self._started = time.monotonic()
        self._deadline = self._started + seconds
        self._result: dict[str, Any] = {
            "benchmark": "gpu",
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": "unknown",
            "scale": scale.name,
            "versions": {"python": sys.version.split()[0], **versions((*PACKAGES, *MORE_PACKAGES))},
            "kit": list(kit),
            "load": [os.getloadavg()[0]],
            "command": shlex.join(["python", *sys.argv]),
            "ratios": {},
            "predictions": {},
            "steps": {},
        }

    def run(self, only: Sequence[str] | None = None) -> bool:
        """Run all steps, or those named in ``only``; whether none failed.

        Raises:
            SystemExit: a step does not exist.
        """
        if unknown := set(only or ()) - {step.name for step in STEPS}:
            raise SystemExit(f"no step {', '.join(sorted(unknown))}; choose from {', '.join(s.name for s in STEPS)}")
        preload()
        runner = Runner(self._scale)
        outcomes = []
        for step in STEPS:
            if only and step is not FIRST and step.name not in only:
                continue
            outcome = self._outcome(runner, step, outcomes)
            outcomes.append(outcome)
            self._add(step, outcome)
        print(self._path, flush=True)
        return outcomes[0].status == "done" and all(outcome.status in ("done", "skipped") for outcome in outcomes)

    def _outcome(self, runner: Runner, step: Step, before: Sequence[Outcome]) -> Outcome:
        if before and before[0].status != "done":
            return Outcome("skipped", reason=f"step {FIRST.name!r} found no usable device")
        remaining = self._deadline - time.monotonic()
        if remaining < MIN_SECONDS:
            return Outcome("skipped", reason="no time left")
        return runner.run(step, min(step.limit * self._scale.patience, remaining))

    def _add(self, step: Step, outcome: Outcome) -> None:
        """Add a step's outcome to the result, write it, and print the step's line."""
        result = self._result
        if step is FIRST:
            result["hardware"] = outcome.figures.get("hardware", "unknown")
            result["device"] = outcome.figures
        result["steps"][step.name] = outcome.as_json()
        result["predictions"] |= {f"{step.name}: {name}": line for name, line in outcome.predictions.items()}
        if step.name == "generation-7b":
            result["ratios"] |= outcome.figures.get("ratios", {})
        result["load"] = [result["load"][0], os.getloadavg()[0]]
        result["seconds"] = time.monotonic() - self._started
        self._write()
        print(self._line(step, outcome), flush=True)

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps(self._result, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self._path)

    @property
    def _path(self) -> Path:
        return self._folder / f"gpu_{self._result['date']}_{self._result['hardware']}.json"

    def _line(self, step: Step, outcome: Outcome) -> str:
        passed = sum(check["passed"] for check in outcome.checks.values())
        words = [outcome.reason] if outcome.reason else []
        words += [f"{passed} of {len(outcome.checks)} checks"] if outcome.checks else []
        words += list(outcome.headlines)
        words += [f"skipped {name} ({reason})" for name, reason in outcome.skipped.items()]
        at = time.monotonic() - self._started
        return f"{at:5.0f} s  {step.name:<16} {outcome.status:<8} {outcome.seconds:5.1f} s  {'; '.join(words)}"
