"""Builds run folders as the stages write them: MiniWorld scenes, noisy captions, plausible scores, real metrics.

Everything that can be real is (scenes, counts, selection, label-free figures, manifests); only the models are not:
a caption is drawn with more or less care, and a sentence has a higher score and likelihood when it is true.
"""

import hashlib
import math
import random
import re
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from jsfree import config, schemas
from jsfree.evaluation import labelfree
from jsfree.evaluation import miniworld as metrics
from jsfree.miniworld import world
from jsfree.miniworld.world import CaptionNoise
from jsfree.run.folder import shard_name
from jsfree.run.run import Manifest, Run
from jsfree.stages.coverage_selection import CandidateTable, CoverageSelection, Verification, fit
from jsfree.stages.pair_selection import select_pairs

SETTINGS = {"source": {"count": 120}, "evaluate": {"source": {"split": "test", "count": 40}}}
COVERAGE: dict[str, Any] = {
    "generate": {"samples": 2},
    "select": {"strategy": "coverage", "first": 2, "last": 10},
    "train": {"objective": "dpo+nll", "sft_weight": 4.0},
}
"""Settings of a run with verified sentences and composed captions."""
END = 2
CARE = {
    0: CaptionNoise(),
    1: CaptionNoise(0.2, 0.03, 0.05, 0.03, (0.25,) * 5),
    2: CaptionNoise(0.28, 0.02, 0.05, 0.03, (0.1,) * 5),
}
SHARD = 50


def build(folder: Path, rounds: int = 1, truth: bool = True, errors: bool = True, **settings: Any) -> Run:
    """A finished run of ``rounds`` rounds in ``folder``; ``settings`` override the configuration's sections."""
    run = Run.open(config.build({**SETTINGS, "run": str(folder), "rounds": rounds, **settings}, where="test"))
    for number in range(1, rounds + 1):
        _write_pairs(run, number)
        _write_training(run, number)
        _write_evaluation(run, number, truth)
        if errors:
            _write_errors(run, number)
    run.folder.write_json("run.json", _about(rounds))
    return run


def write_rows(run: Run, number: int, stage: str, rows: list[Any], schema: pa.Schema, **facts: Any) -> None:
    """Write rows as the shards of a stage, and its manifest."""
    for shard, start in enumerate(range(0, len(rows), SHARD)):
        table = pa.Table.from_pylist(rows[start : start + SHARD], schema=schema)
        run.stage(number, stage).write_table(shard_name(shard), table)
    finish(run, number, stage, len(rows), **facts)


def finish(run: Run, number: int, stage: str, rows: int, **facts: Any) -> None:
    """Write the manifest of a stage with so many rows."""
    seconds = {"pairs": 9.2, "scored": 0.6, "selected": 0.02, "samples": 0.4}.get(stage, 1.7)
    tokens = 57 * rows if stage != "samples" else 0
    manifest = Manifest(
        fingerprint="f" * 16,
        rows_in=rows,
        rows_out=rows,
        seconds=seconds * 1.3,
        device_seconds=seconds * 1.8,
        tokens=tokens,
        facts=facts,
    )
    run.finish(number, stage, manifest)


def sample(run: Run, split: str, index: int) -> dict[str, Any]:
    """One sample, as the image sources make it."""
    scene = world.scene(split, index)
    content = world.png_bytes(scene)
    image = {"id": scene.scene_id, "uri": None, "bytes": content, "sha256": hashlib.sha256(content).hexdigest()}
    return {
        "sample_id": schemas.sample_id(scene.scene_id, run.config.prompt),
        "image": image,
        "prompt": run.config.prompt,
    }


def _spoken(text: str, scene: world.Scene, rng: random.Random) -> dict[str, Any]:
    """The columns of a scored caption of ``text``."""
    sentences = [part.strip() + "." for part in text.split(".") if part.strip()]
    scores: list[dict[str, Any]] = []
    for sentence in sentences:
        false = bool(metrics.hallucinated_mentions(scene, sentence))
        scores.append({"text": sentence, "score": rng.gauss(0.225 if false else 0.292, 0.022)})
    mean = sum(float(item["score"]) for item in scores) / max(1, len(scores))
    return {"text": text, "token_ids": [5] * len(text.split()), "finish": "stop", "sentences": scores, "score": mean}


def _write_pairs(run: Run, number: int) -> None:
    count = run.config.source.count or 0
    samples = [sample(run, "unlabelled", index) for index in range((number - 1) * count, number * count)]
    rows: list[Any] = []
    for row in samples:
        scene, rng = world.scene_from_id(row["image"]["id"]), random.Random(row["sample_id"])
        ratio = min(1.0, max(0.0, rng.gauss(0.5, 0.15)))
        low = {"ratio": 0.0, **_spoken(world.noisy_caption(scene, rng, CARE[0]), scene, rng)}
        worse = CaptionNoise(0.15 + 0.5 * ratio, 0.08 + 0.5 * ratio, 0.2, 0.2, (0.9,) * 5)
        high = {"ratio": ratio, **_spoken(world.noisy_caption(scene, rng, worse), scene, rng)}
        inverted = high["score"] > low["score"]
        rows.append(
            {**row, "low": low, "high": high, "seed": 0, "inverted": inverted, "gap": abs(high["score"] - low["score"])}
        )
    rows[3]["high"] = {**rows[3]["low"], "ratio": 0.4}
    rows[4]["low"]["finish"] = "length"
    write_rows(run, number, "samples", samples, schemas.SAMPLES)
    if run.config.select.strategy == "coverage":
        _write_candidates(run, number, rows)
        return
    if run.config.clip.second is not None:
        rows = [_scored_again(row) for row in rows]
    selection = select_pairs(rows, run.config.select, run.config.seed)
    write_rows(run, number, "pairs", [_only(row, schemas.PAIRS) for row in rows], schemas.PAIRS)
    write_rows(run, number, "scored", rows, schemas.scored_schema(0, len(run.config.clip.scorers)))
    write_rows(run, number, "selected", selection.rows, schemas.SELECTED, **selection.facts)


def _scored_again(row: dict[str, Any]) -> dict[str, Any]:
    """A scored pair with the scores of a second scorer, whose cosines are about a third of the first's."""
    scene = world.scene_from_id(row["image"]["id"])
    second: dict[str, Any] = {}
    for role in ("low", "high"):  # identical captions have the same scores
        rng = random.Random(f"{row['sample_id']}/{row[role]['text']}/second")
        spoken = _spoken(row[role]["text"], scene, rng)
        sentences = [{**item, "score": item["score"] / 3} for item in spoken["sentences"]]
        second[f"second_{role}"] = {"sentences": sentences, "score": spoken["score"] / 3}
    also = second["second_low"]["score"] < second["second_high"]["score"]
    return {**row, **second, "inverted": row["inverted"] and also}


def _write_candidates(run: Run, number: int, rows: list[Any]) -> None:
    """Write pairs with all candidates of their images, and select from them."""
    samples = run.config.generate.samples
    for row in rows:
        scene, rng = world.scene_from_id(row["image"]["id"]), random.Random(f"{row['sample_id']}/samples")
        spoken = {"low": row["low"], "high": row["high"]}
        for sample in range(1, samples + 1):
            spoken[f"sample-{sample}"] = {
                "ratio": 0.0, **_spoken(world.noisy_caption(scene, rng, CARE[0]), scene, rng)
            }  # fmt: skip
        row["candidates"] = [_candidate(role, caption, scene, rng) for role, caption in spoken.items()]
        for caption, candidate in zip((row["low"], row["high"]), row["candidates"], strict=False):
            caption["token_ids"] = candidate["token_ids"]
    write_rows(
        run, number, "pairs", [_only(row, schemas.pairs_schema(samples)) for row in rows], schemas.pairs_schema(samples)
    )
    write_rows(run, number, "scored", rows, schemas.scored_schema(samples))
    candidates, select = CandidateTable(run.stage(number, "scored")), run.config.select
    verification = fit(candidates, select) if number == 1 else Verification.read(run.stage(1, "selected"))
    selection = CoverageSelection(candidates, verification, select, run.config.seed, number)
    facts = selection.write(run.stage(number, "selected"), SHARD)
    finish(run, number, "selected", facts["kept"], **facts)


def _candidate(role: str, caption: dict[str, Any], scene: world.Scene, rng: random.Random) -> dict[str, Any]:
    """A caption with one token per word, whose probability is lower in sentences about absent objects."""
    text, tokens, logps, ends = caption["text"], [], [], []
    for sentence in re.finditer(r"[^.]+\.?", text):
        false = bool(metrics.hallucinated_mentions(scene, sentence.group()))
        level = rng.gauss(-1.1 if false else -0.4, 0.35)
        for word in re.finditer(r"\S+", sentence.group()):
            tokens.append(zlib.crc32(word.group().strip(".").lower().encode()) % 30_000 + 10)
            logps.append(min(-0.01, rng.gauss(level, 0.1)))
            ends.append(sentence.start() + word.end())
    if caption["finish"] == "stop":
        tokens, logps, ends = [*tokens, END], [*logps, -0.05], [*ends, len(text)]
    kept = {key: caption[key] for key in ("ratio", "text", "finish", "sentences")}
    without_image = [] if role != "high" else [logp - 1.0 for logp in logps]
    return {
        "role": role, **kept, "token_ids": tokens, "logps": logps, "unconditional_logps": without_image, "ends": ends
    }  # fmt: skip


def _only(row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    return {name: row[name] for name in schema.names}


def _write_training(run: Run, number: int) -> None:
    rng = random.Random(number)
    steps: list[dict[str, Any]] = []
    for step in range(60):
        margin = 2.4 * (1 - math.exp(-step / 22)) + rng.gauss(0, 0.12) * (step > 0)
        steps.append(
            {
                "step": step,
                "epoch": step // 30,
                "loss": math.log1p(math.exp(-margin)),
                "chosen_reward": 0.35 * margin,
                "rejected_reward": -0.65 * margin,
                "accuracy": min(1.0, 0.5 + 0.24 * margin) if step else 0.0,
                "margin": margin,
                "chosen_logp": -31 + 3.5 * margin,
                "rejected_logp": -44 - 6.5 * margin,
                "grad_norm": 9.0 * math.exp(-step / 25) + rng.random() * 2,
                "learning_rate": 2e-4,
                "tokens": 1800,
                "seconds": 0.2,
            }
        )
    if run.config.train.objective != "dpo":
        steps = [{**step, "nll": 0.5 - 0.004 * step["step"]} for step in steps]
    if run.config.train.objective == "nll":
        shared = ("step", "epoch", "loss", "nll", "grad_norm", "learning_rate", "tokens", "seconds")
        steps = [{name: step[name] for name in shared} for step in steps]
    run.stage(number, "train").write_json("steps.json", steps)
    run.finish(
        number,
        "train",
        Manifest(fingerprint="f" * 16, rows_in=480, rows_out=960, seconds=14.0, device_seconds=21.5, tokens=108_000),
    )


def _write_evaluation(run: Run, number: int, truth: bool) -> None:
    samples = [sample(run, "test", index) for index in range(run.config.evaluate.source.count or 0)]
    models = {f"m{number}": "after", "m0": "before"}
    scored: dict[str, Any] = {"before": {}, "after": {}}
    for model, when in models.items():
        for mode in run.config.evaluate.modes:
            rows = [_caption(row, model, mode) for row in samples]
            scored[when][mode] = rows
            if number == 1 or model != "m0":
                plain = [_only(row, schemas.CAPTIONS) for row in rows]
                write_rows(run, number, f"captions/{model}-{mode}", plain, schemas.CAPTIONS)
                write_rows(run, number, f"captions_scored/{model}-{mode}", rows, schemas.SCORED_CAPTIONS)
    low = labelfree.low_score_threshold(scored["before"]["greedy"])
    known = {when: {m: labelfree.summarise(rows, low, 200) for m, rows in of.items()} for when, of in scored.items()}
    changes = {}
    for mode, rows in scored["after"].items():
        previous: Any = [_caption(row, f"m{number - 1}", mode) for row in samples]
        changes[mode] = labelfree.changes(previous, rows, low, 200)
    label_free = {**known, "captions": len(samples), "low_score": low, "changes": changes}
    run.round(number).write_json("label_free.json", label_free)
    if truth:
        counted = {when: {mode: _counted(rows) for mode, rows in of.items()} for when, of in scored.items()}
        run.round(number).write_json("metrics.json", {**counted, "scenes": len(samples)})


def _caption(row: dict[str, Any], model: str, mode: str) -> dict[str, Any]:
    scene, rng = world.scene_from_id(row["image"]["id"]), random.Random(f"{row['sample_id']}/{model}/{mode}")
    care = CARE[int(model[1:])]
    if mode == "sampled":
        padded = tuple(min(1.0, share + 0.15) for share in care.padded)
        care = CaptionNoise(care.omitted + 0.1, care.replaced + 0.08, 0.12, 0.1, padded)
    return {**row, "model": model, "mode": mode, **_spoken(world.noisy_caption(scene, rng, care), scene, rng)}


def _counted(rows: list[Any]) -> dict[str, Any]:
    counts = [metrics.count_caption(world.scene_from_id(row["image"]["id"]), row["text"]) for row in rows]
    return metrics.summarise(counts, 200)


def _write_errors(run: Run, number: int) -> None:
    failed = [("samples", "undecodable", "image 17.jpg is damaged (truncated file); replace or remove it")] * 3
    failed += [("captions/m1-greedy", "missing", "image 4.jpg does not exist; restore it")]
    for shard, (stage, kind, message) in enumerate(failed):
        row = {"sample_id": f"x{shard}", "stage": stage, "kind": kind, "message": message}
        folder = run.round(number) / "errors" / stage
        folder.write_table(shard_name(shard), pa.Table.from_pylist([row], schema=schemas.ERRORS))


def _about(rounds: int) -> dict[str, Any]:
    return {
        "jsfree": "0.1.0",
        "created": "2026-11-21T09:30:00+00:00",
        "versions": {"python": "3.12.3", "ray": "2.60.0", "torch": "2.13.0", "transformers": "5.19.1"},
        "hardware": "2 CPU cores (x86_64)",
        "command": "jsfree run configs/miniworld.yaml --run runs/miniworld",
        "fingerprint": "0123456789abcdef",
        "rounds_done": rounds,
    }
