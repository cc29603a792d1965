"""The model card of a round's model: ``README.md`` in its folder, in the format of the Hugging Face hub.

The card depends on the run's folder alone: it is the same wherever and whenever it is written, and names no folder of
this machine. It is written after the evaluation of the round, and by ``jsfree publish``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jsfree
from jsfree.config import ClipModel, Decoding, RunConfig, Source
from jsfree.evaluation.metrics import LABEL_FREE, MISSING, TRUTH
from jsfree.images.overlap import measure_overlap
from jsfree.models.contents import ADAPTER, CARD
from jsfree.publishing.base_model import Base, base_of
from jsfree.report import reading, tables
from jsfree.report.tables import Comparison, Line
from jsfree.run.run import Run
from jsfree.uris import has_scheme, is_written_as_path

PAPER = "[arXiv 2411.17760](https://arxiv.org/abs/2411.17760)"
TAGS = ("jsfree", "dpo", "image-captioning", "hallucination", "arxiv:2411.17760")
TASK = "image-text-to-text"
VERSIONS = ("torch", "transformers", "deepspeed", "open_clip_torch")
"""Libraries that the card lists; their versions are in the run's ``run.json``."""


def write_card(run: Run, number: int) -> None:
    """Write the card of round ``number`` into its model's folder.

    Raises:
        StorageError: it cannot be written.
    """
    run.stage(number, "model").write(CARD, card(run, number).encode())


def card(run: Run, number: int) -> str:
    """The card of the model of round ``number``: front matter, then Markdown."""
    config = run.config
    base = base_of(config.captioner.versioned_ref, config.models)
    compared, with_truth = _comparisons(run, number)
    sections = (
        _front_matter(config, number, base, compared),
        _introduction(config, number, base),
        _use(config),
        _data(run, number),
        _training(run, number),
        _evaluation(run, number, compared, with_truth),
        _limits(config, base, with_truth),
    )
    return "\n\n".join(sections) + "\n"


def _front_matter(config: RunConfig, number: int, base: Base, compared: Sequence[Comparison]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    source = config.evaluate.source
    licence: dict[str, Any] = dict(base.licence)
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=source.kind,
            dataset_name=_described(source),
            dataset_split=source.split if source.kind == "miniworld" else None,
            metric_type=line.metric.name,
            metric_name=f"{line.metric.label}{_unit(line)}, {comparison.mode}",
            metric_value=round(line.metric.scale * line.last.value, line.metric.digits),
        )
        for comparison in compared
        for line in comparison.lines
        if line.last is not None
    ]
    named: dict[str, Any] = {"model_name": f"{base.name}, m{number}", "eval_results": results} if results else {}
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=list(TAGS),
        base_model=None if base.hub is None else base.hub.repo,
        base_model_relation=None if base.hub is None else "finetune",
        **named,
        **licence,
    )
    return f"---\n{data.to_yaml()}\n---"


def _introduction(config: RunConfig, number: int, base: Base) -> str:
    rounds = f"{tables.count_word(number)} round{'' if number == 1 else 's'}"
    at = f" at revision `{base.hub.revision}`" if base.hub is not None and base.hub.revision else ""
    clip = " and ".join(_scorer(model) for model in config.clip.scorers)
    clip += ", which must agree" if config.clip.second is not None else ""
    judge = f"CLIP ({clip})" if config.score.judge == "clip" else "The base model itself"
    if config.imported is not None:
        return f"""# {base.name}, trained on imported preference pairs (m{number})

{base.name}{at} after direct preference optimization (DPO) on imported pairs of captions
({config.imported.format}: `{_last(config.imported.path)}`). {judge} scored every sentence against
the image to find the pairs whose order was inverted, as in {PAPER}."""
    return f"""# {base.name}, improved by itself (m{number})

{base.name}{at} after {rounds} of judge-free self-improvement ({PAPER}): it was trained by direct preference
optimization (DPO) on pairs of captions that it had generated itself. One of the two captions of each image was made to
hallucinate, by mixing the model's prediction without the image into every token; {judge} scored every sentence
against the image to find the pairs whose order was inverted. No human and no large model judged any caption."""


def _scorer(model: ClipModel) -> str:
    weights = f", {model.pretrained}" if model.pretrained else ""
    return f"`{_public(model.ref)}`{weights}"


def _use(config: RunConfig) -> str:
    prompt, tokens = config.prompt, config.generate.decoding.max_new_tokens
    padded = (
        "\n\nIt was trained on images padded to a square with the processor's mean colour. The processor crops instead:"
        " pad images yourself, or set `do_pad` of its image processor."
        if config.captioner.preprocessing == "pad"
        else ""
    )
    adapter = (
        f"\n\n`{ADAPTER}/` holds the LoRA adapter alone, for peft; it is merged into the weights next to it."
        if config.train.lora is not None
        else ""
    )
    return f"""## How to use it

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

name = "."  # this folder, or its name on the hub
model = AutoModelForImageTextToText.from_pretrained(name)
processor = AutoProcessor.from_pretrained(name)
image = {{"type": "image", "image": Image.open("picture.jpg").convert("RGB")}}
turn = [{{"role": "user", "content": [image, {{"type": "text", "text": {prompt!r}}}]}}]
options = {{"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}}
inputs = processor.apply_chat_template(turn, **options).to(model.device, model.dtype)
output = model.generate(**inputs, do_sample=False, max_new_tokens={tokens})
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

With vLLM: `vllm serve . --dtype {config.captioner.dtype}`. The chat template writes the start token, if the model has
one; do not add a second one to a prompt that it rendered.{padded}{adapter}"""


def _data(run: Run, number: int) -> str:
    header = ["round", "images", "pairs of captions", "inverted", "pairs trained on"]
    rows = []
    for each in range(1, number + 1):
        samples, pairs, selected = (run.manifest(each, stage) for stage in ("samples", "pairs", "selected"))
        facts = {} if selected is None else selected.facts
        counts = [samples and samples.rows_out, pairs and pairs.rows_out, facts.get("inverted"), facts.get("kept")]
        rows.append([f"{each}", *(MISSING if count is None else f"{count:,}" for count in counts)])
    imported = run.config.imported
    description = (
        f"Only images were used, each listed image once: {_described(run.config.source)}. The captions are the model's"
        f' own, for the prompt "{run.config.prompt}".'
        if imported is None
        else f"Images, prompts and both captions of a pair are those of `{_last(imported.path)}` ({imported.format})."
    )
    return f"## Data\n\n{description}\n\n{_table(header, rows)}"


def _training(run: Run, number: int) -> str:
    lines = [f"- {name}: {value}" for name, value in _settings(run.config)]
    about = reading.json_or_empty(run.folder, "run.json")
    versions = about.get("versions", {})
    used = ", ".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions)
    commit = about.get("code", {}).get("commit")
    version = f"jsfree {about.get('jsfree', jsfree.__version__)}" + (f" (commit {commit[:12]})" if commit else "")
    lines.append(f"- software: {version}{', ' + used if used else ''}")
    lines.append(f"- configuration: fingerprint `{run.config.own_fingerprint}`, seed {run.config.seed}, round {number}")
    return "## Training\n\n" + "\n".join(lines)


def _settings(config: RunConfig) -> Iterator[tuple[str, str]]:
    train, select, ratios = config.train, config.select, config.generate.ratios
    drawn = {
        "fixed": f"{ratios.low:g} and {ratios.high:g}",
        "uniform": "uniform on [0, 1]",
        "gaussian": f"N({ratios.mean:g}, {ratios.std:g}) clipped to [0, 1]",
    }[ratios.distribution]
    winner = "the preferred caption at 0" if ratios.winner == "zero" else "drawn for both captions"
    if config.imported is None and config.generate.loser != "ratio":
        yield "rejected captions", f"{config.generate.loser}; {_decoded(config.generate.decoding)}"
    elif config.imported is None:
        yield "hallucination ratios", f"{drawn}, {winner}; {_decoded(config.generate.decoding)}"
    kept = f"splits {select.first} to {select.last} of {select.splits} by score gap"
    yield "selection", f"{kept}; pairs inverted by {config.score.judge_name}: {select.inverted}"
    reference = "the model that each round started from" if train.reference == "previous" else "the base model"
    yield "loss", f"DPO ({train.loss}), beta {train.beta:g}, reference: {reference}"
    yield "trained", _trained(config)
    size = f"{train.epochs} epoch{'' if train.epochs == 1 else 's'}, {train.pairs_per_step} pairs per step"
    rate = f"learning rate {train.learning_rate:g}, cosine after a warm-up of {100 * train.warmup_fraction:g} %"
    yield "optimizer", f"AdamW, {rate}, weight decay {train.weight_decay:g}; {size}"
    yield "arithmetic", f"{config.captioner.dtype}; image preprocessing: {config.captioner.preprocessing}"


def _trained(config: RunConfig) -> str:
    lora, layers = config.train.lora, config.train.trained_layers
    if lora is not None:
        return f"LoRA, rank {lora.rank}, alpha {lora.alpha}, of {', '.join(lora.targets)}; merged"
    if layers is not None:
        return f"the projector and the last {layers} layers of the language model"
    return "the projector and the language model; the vision tower is frozen"


def _evaluation(run: Run, number: int, compared: Sequence[Comparison], with_truth: bool) -> str:
    if not compared:
        return "## Evaluation\n\nThis model has not been evaluated yet."
    config = run.config
    modes = "; ".join(f"{mode}: {_decoded(config.evaluate.modes[mode])}" for mode in config.evaluate.modes)
    measured = (
        "Captions are compared with the exact contents of the images."
        if with_truth
        else "The contents of these images are not known: these metrics compare captions with CLIP and with each other,"
        " and do not measure hallucination."
        + (" CLIP has also selected the training pairs." if config.score.judge == "clip" else "")
    )
    parts = [
        "## Evaluation",
        f"Images: {_described(config.evaluate.source)}. {measure_overlap(run, number)} {measured} m0 is the base model;"
        f" in parentheses: 95 % intervals (bootstrap over captions). Decoding: {modes}.",
    ]
    for comparison in compared:
        header = [comparison.mode, *comparison.models, "change"]
        parts.append(_table(header, [_measured(line) for line in comparison.lines]))
    return "\n\n".join(parts)


def _comparisons(run: Run, number: int) -> tuple[list[Comparison], bool]:
    """The comparison of before and after in every mode, and whether it uses the contents of the images."""
    folder, modes = run.round(number), list(run.config.evaluate.modes)
    for name, metrics in (("metrics.json", TRUTH), ("label_free.json", LABEL_FREE)):
        if folder.exists(name):
            return tables.comparisons([(number, folder.read_json(name))], metrics, modes), metrics is TRUTH
    return [], False


def _measured(line: Line) -> list[str]:
    cells = [f"{cell.value} ({cell.interval})" if cell.interval else cell.value for cell in line.cells]
    clear = " (unclear)" if line.change.verdict == "unclear" else ""
    return [f"{line.metric.label}{_unit(line)}: {line.metric.meaning}", *cells, line.change.text + clear]


def _unit(line: Line) -> str:
    return f" ({line.metric.unit})" if line.metric.unit else ""


def _limits(config: RunConfig, base: Base, with_truth: bool) -> str:
    licence = (
        f"It is under the licence of its base, {base.licence.get('license_name', base.licence['license'])}."
        if "license" in base.licence
        else f"The licence of {base.name} applies to this model too. It is not known here: check it before you use or"
        " distribute it."
    )
    lines = [
        "It still names objects that are not in the image, only less often.",
        f"The mean sentence score by {config.score.judge_name} rewards neither completeness nor variety: captions may"
        " become shorter, omit objects or repeat them. Read hallucination together with recall, length and repetition.",
        f"It was trained to answer {_questions(config)} in one turn about one image. Other uses were not measured, nor"
        " were safety and bias.",
        licence,
    ]
    if config.captioner.ref.startswith("miniworld:"):
        lines.insert(0, "It knows only MiniWorld, a small world of drawn scenes, and cannot describe photographs.")
    if not with_truth:
        lines.insert(0, "Hallucination itself has not been measured.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _questions(config: RunConfig) -> str:
    return f'one question, "{config.prompt}",' if config.imported is None else "the pairs' questions"


def _described(source: Source) -> str:
    """Describe a source of images without naming folders of this machine."""
    count = "all" if source.count is None else f"{source.count:,}"
    if source.kind == "miniworld":
        return f"{count} MiniWorld scenes of the {source.split} split"
    each = " per round" if type(source) is Source and source.count is not None else ""
    return f"{count} images{each} of `{_last(source.path or '')}` ({source.kind})"


def _decoded(decoding: Decoding) -> str:
    how = "greedy" if not decoding.temperature else f"temperature {decoding.temperature:g}, top-p {decoding.top_p:g}"
    views = decoding.views
    mean = f", mean of {views.count} views shifted by up to {views.shift} pixels" if views.count > 1 else ""
    return f"{how}, at most {decoding.max_new_tokens} tokens{mean}"


def _public(ref: str) -> str:
    """A model reference without folders of this machine: of a path or URI only the last part."""
    return _last(ref) if has_scheme(ref) or is_written_as_path(ref) else ref


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
