"""Every setting of a run and its default, checked when it is built.

``load(path, overrides)`` reads a YAML file; ``--set section.key=value`` overrides one value. An unknown key
raises with the nearest valid one. The defaults are MiniWorld's, so an empty file is a run that works anywhere.
Settings that only say where work is placed live in ``resources`` sections and never enter a fingerprint.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from jsfree.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values are not changed after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Resources(Section):
    """Where the replicas of a stage run; never part of a fingerprint."""

    replicas: Positive = 2
    """Model replicas, one Ray actor (or training worker) each."""
    cpus: Annotated[float, Field(ge=0)] = 1
    """Logical CPUs a replica reserves."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs a replica reserves; a fraction shares a GPU. 0 runs on the CPU."""


class Source(Section):
    """Where images come from. Every source yields samples with a stable id, in an order drawn by the seed."""

    kind: Literal["miniworld", "folder", "llava_json", "parquet"] = "miniworld"
    """``miniworld`` draws scenes; ``folder`` takes every image below ``path``; ``llava_json`` reads a LLaVA
    instruct file (conversations dropped, one sample an image); ``parquet`` reads a file or folder of tables."""
    path: str | None = None
    """Folder, JSON file, or Parquet file or folder; local, or any fsspec URI. Not used by ``miniworld``."""
    images: str | None = None
    """Folder that relative image paths of ``llava_json`` and ``parquet`` start from; default: beside ``path``."""
    column: str = "image"
    """``parquet``: the column of images (bytes, a struct with bytes, or a path or URI)."""
    split: Literal["unlabelled", "development", "test"] = "unlabelled"
    """``miniworld``: which of the disjoint splits to draw scenes from."""
    count: Positive | None = 2400
    """Images a round takes; every round takes fresh ones. ``null``: all there are (one round only)."""
    max_bytes: Positive = 50_000_000
    """A larger file is an error row."""
    max_pixels: Positive = 40_000_000
    """An image of more pixels is an error row; checked before its pixels are decoded."""
    min_side: Positive = 8
    """An image with a shorter side is an error row."""

    @model_validator(mode="after")
    def _check(self) -> Source:
        if self.kind != "miniworld" and not self.path:
            raise ValueError(f"kind {self.kind!r} needs 'path': the folder or file that holds the images")
        return self


class CaptionerSettings(Section):
    """The seed captioner m0."""

    ref: str = "miniworld:captioner"
    """Hub id, folder or URI of a LLaVA checkpoint; ``miniworld:captioner`` is the shipped tiny one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of generation and training."""
    preprocessing: Literal["crop", "pad"] = "crop"
    """``crop``: the Hugging Face processor's centre crop; ``pad``: to a square with the mean colour, as the
    original LLaVA. The same in generation, training, evaluation and serving."""


class ClipSettings(Section):
    """The CLIP model that verifies sentences."""

    ref: str = "miniworld:clip"
    """open_clip name (with ``pretrained``), ``hf-hub:`` id, folder or URI."""
    pretrained: str | None = None
    """open_clip weight tag of a built-in name (``openai`` for ViT-L-14-336)."""


class Ratios(Section):
    """How the two hallucination ratios of a pair are drawn, once a response (paper, section 3.3)."""

    distribution: Literal["fixed", "uniform", "gaussian"] = "gaussian"
    """``fixed``: the two values below; ``uniform``: on [0, 1]; ``gaussian``: N(mean, std) clipped to [0, 1]."""
    winner: Literal["zero", "drawn"] = "zero"
    """``zero``: the provisional winner is decoded at h = 0, only the loser's ratio is drawn; ``drawn``: both
    are drawn from the distribution and the lower one is the provisional winner, as the paper writes."""
    low: Fraction = 0.0
    """``fixed``: the winner's ratio."""
    high: Fraction = 0.1
    """``fixed``: the loser's ratio."""
    mean: float = 0.5
    """``gaussian``: mean."""
    std: Annotated[float, Field(gt=0)] = 0.15
    """``gaussian``: standard deviation."""

    @model_validator(mode="after")
    def _check(self) -> Ratios:
        if self.distribution == "fixed" and self.low >= self.high:
            raise ValueError(f"'low' ({self.low}) must be below 'high' ({self.high}): they order the pair")
        if self.distribution == "fixed" and self.winner == "zero" and self.low != 0:
            raise ValueError(
                f"'winner: zero' decodes the winner at h = 0, but 'low' is {self.low}; use 'winner: drawn'"
            )
        return self


class Decoding(Section):
    """How a caption is decoded from the next-token distribution."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Divides the logits of each path before mixing; 0 takes the most probable token of the mixture."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of each path's distribution, applied before mixing; 1 keeps all tokens."""
    max_new_tokens: Positive = 96
    """A caption that has not ended by then is cut (finish ``length``)."""


class Generate(Section):
    """Stage 1: two captions an image by dual-path decoding (Eq. 3)."""

    ratios: Ratios = Ratios()
    decoding: Decoding = Decoding()
    mixing: Literal["probability", "logit"] = "probability"
    """``probability``: Eq. 3; ``logit``: the geometric mixture, for comparison."""
    batch_size: Positive = 64
    """Captions decoded together by a replica."""
    resources: Resources = Resources()


class Score(Section):
    """Stage 2: CLIP similarity of every sentence with the image."""

    batch_size: Positive = 128
    """Samples scored together by a replica."""
    resources: Resources = Resources()


class Select(Section):
    """Stage 3: which scored pairs are trained on."""

    inverted: Literal["swap", "drop", "keep"] = "swap"
    """A pair whose provisional loser scores higher: ``swap`` its roles (the paper), ``drop`` it, or ``keep``
    the order of the ratios (no verification, for ablation)."""
    splits: Positive = 10
    """Equal splits of the pairs sorted by score gap, lowest first."""
    first: Positive = 4
    """First split kept, counted from 1."""
    last: Positive = 7
    """Last split kept."""
    keep_truncated: bool = False
    """Keep pairs with a caption that was cut at ``max_new_tokens`` (it has no end token to learn)."""
    repeating: Literal["keep", "drop"] = "keep"
    """A pair whose chosen caption says more sentences again than its rejected one: ``keep`` it, or ``drop`` it,
    because it teaches repetition, which the mean sentence score does not punish."""
    max_pairs: Positive | None = None
    """At most so many of the kept pairs, drawn by the seed."""

    @model_validator(mode="after")
    def _check(self) -> Select:
        if not self.first <= self.last <= self.splits:
            raise ValueError(f"need first <= last <= splits, got {self.first}, {self.last}, {self.splits}")
        return self


class Train(Section):
    """Stage 4: DPO against the frozen model of the round's start (Eq. 1-2)."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Weight of the implicit reward. The paper writes none (1); 0.1 is what published LLaVA runs use."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean per-token negative log-likelihood of the chosen caption, added to the DPO loss."""
    reference: Literal["previous", "seed"] = "previous"
    """The frozen reference of round k: the model the round starts from, or always m0."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    epochs: Positive = 2
    pairs_per_step: Positive = 32
    """Pairs of one optimizer step, over all workers."""
    pairs_per_worker: Positive = 16
    """Pairs in one forward pass of a worker; gradients accumulate up to ``pairs_per_step``."""
    warmup_fraction: Fraction = 0.05
    """Share of the steps with a rising learning rate; a cosine to zero follows."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    zero_stage: Literal[1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    gradient_checkpointing: bool = False
    checkpoint_every: Positive = 50
    """Optimizer steps between checkpoints."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """Lost workers that Ray Train replaces before the stage fails."""
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.pairs_per_step % self.resources.replicas:
            raise ValueError(
                f"'pairs_per_step' ({self.pairs_per_step}) must be a multiple of the"
                f" {self.resources.replicas} training workers"
            )
        share = self.pairs_per_step // self.resources.replicas
        if share % min(self.pairs_per_worker, share):
            raise ValueError(
                f"'pairs_per_worker' ({self.pairs_per_worker}) must divide the {share} pairs a worker has a step"
            )
        return self


class EvaluationSource(Source):
    """Images for evaluation; the defaults are another split than that of training."""

    split: Literal["unlabelled", "development", "test"] = "test"
    """``miniworld``: which of the disjoint splits to draw scenes from."""
    count: Positive | None = 600
    """Images of the evaluation, taken from the end of the order that training takes from the start."""
    first: Annotated[int, Field(ge=0)] = 0
    """``miniworld``: number of the first scene of the split; the others take their images from the end."""


class Evaluate(Section):
    """Stage 5: captions of the models before and after, and what is measured on them."""

    source: EvaluationSource = EvaluationSource()
    """Images that no round trains on; MiniWorld's truth is known, elsewhere the label-free metrics are used."""
    modes: dict[str, Decoding] = {"greedy": Decoding(temperature=0), "sampled": Decoding(temperature=1)}
    """How captions are decoded, by name; ``greedy`` means temperature 0 unless it says otherwise."""
    bootstrap: Positive = 2000
    """Resamples behind every 95 % interval."""

    @field_validator("modes", mode="before")
    @classmethod
    def _greedy_is_greedy(cls, modes: Any) -> Any:
        """A mode that sets something else keeps the temperature that its name stands for."""
        if isinstance(modes, dict) and isinstance(modes.get("greedy"), dict):
            return {**modes, "greedy": {"temperature": 0, **modes["greedy"]}}
        return modes


class Ray(Section):
    """The Ray cluster; never part of a fingerprint."""

    address: str | None = None
    """``null`` starts a local cluster for this run; ``auto`` joins the one on this machine or of this job."""
    num_cpus: Positive | None = None
    """Logical CPUs of a local cluster; default: what the stages ask for, at least 4."""


class RunConfig(Section):
    """One run: the whole loop, ``rounds`` times."""

    run: str = "runs/miniworld"
    """Folder of the run; local, or any fsspec URI."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides which images are drawn, every sampled token, and the order of training pairs."""
    rounds: Positive = 1
    """Rounds of self-improvement; each starts from the model of the round before."""
    prompt: str = "Describe image in detail."
    """What the captioner is asked about every image."""
    shard_rows: Positive = 200
    """Samples in one shard, the unit of work, of files and of resumption."""
    max_failed_fraction: Fraction = 0.01
    """A stage in which a larger share of rows fails is a failed stage."""
    source: Source = Source()
    captioner: CaptionerSettings = CaptionerSettings()
    clip: ClipSettings = ClipSettings()
    generate: Generate = Generate()
    score: Score = Score()
    select: Select = Select()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    ray: Ray = Ray()

    @field_validator("prompt")
    @classmethod
    def _prompt_says_something(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        return prompt

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.rounds > 1 and self.source.count is None:
            raise ValueError("several rounds need 'source.count': how many fresh images each takes")
        return self

    def fingerprint(self, *paths: str) -> str:
        """Hash of the settings at the dotted ``paths``, without what only places work."""
        chosen = {path: _semantic(_at(self.model_dump(mode="json"), path)) for path in paths}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration file and apply ``key.path=value`` overrides.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is wrong.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            read = yaml.safe_load(Path(path).read_text())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
        if read is not None and not isinstance(read, dict):
            raise ConfigError(f"{path}: expected keys and values at the top, found {type(read).__name__}")
        settings = read or {}
    for override in overrides:
        _apply(settings, override)
    return build(settings, where=str(path) if path is not None else "--set")


def build(settings: Mapping[str, Any], where: str) -> RunConfig:
    """Check ``settings`` and build the configuration; errors name ``where``, the key and the remedy.

    Raises:
        ConfigError: a key is unknown or a value is wrong.
    """
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(problem) for problem in error.errors())) from None


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Settings that differ, as ``key: old -> new``, without what only places work."""
    before, after = (dict(_flat(_semantic(config.model_dump(mode="json")))) for config in (old, new))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key) and key != "run"]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


def _apply(settings: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: write key=value, for example --set source.count=100")
    *parents, last = key.split(".")
    section = settings
    for parent in parents:
        child = section.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a section")
        section = child
    try:
        section[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is no valid YAML") from error


def _explain(problem: Mapping[str, Any]) -> str:
    """One line for one pydantic error: the key, what is wrong, the remedy."""
    location = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        valid = _keys_beside(location)
        nearest = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid keys: {', '.join(valid)}"
        return f"unknown key {key!r}; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool | None) else ""
    return f"{key or 'configuration'}: {message}{shown}"


def _keys_beside(location: Sequence[str]) -> list[str]:
    """Names that would have been valid in place of the last part of ``location``."""
    section: type[BaseModel] = RunConfig
    for part in location[:-1]:
        field = section.model_fields.get(part)
        if field is None:  # a free name, such as that of an evaluation mode
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), section)
    return list(section.model_fields)


def _at(settings: Any, path: str) -> Any:
    for part in path.split("."):
        settings = settings[part]
    return settings


def _semantic(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _semantic(child) for key, child in value.items() if key not in ("resources", "ray")}
    return value


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
