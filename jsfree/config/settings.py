"""All settings of a run with their defaults, documented under each field and validated on construction.

The defaults describe a run on MiniWorld, so an empty configuration file is valid. ``jsfree.config.loading`` reads
files and overrides.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from jsfree.uris import is_hub_syntax

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Placement:
    """Marks a setting that affects placement, speed or fault tolerance, but not results.

    It is excluded from fingerprints, so a run can be resumed with another value. It may change the last bits of
    floating-point results.
    """


class AddedLater:
    """Marks a setting that older runs lack: it is excluded from fingerprints while it has its default value."""


class Section(BaseModel):
    """Base class of all sections: immutable; unknown keys and non-finite numbers are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Resources(Section):
    """Replicas of a stage and the resources that each reserves. Excluded from fingerprints.

    Ray places a replica on any node with enough free resources: a node with 8 GPUs and 96 CPUs runs 8 replicas with
    ``gpus: 1``, 32 with ``gpus: 0.25`` or 6 with ``cpus: 16``. Replicas are spread over the nodes; training workers
    are packed onto as few nodes as possible.
    """

    replicas: Positive = 2
    """Number of model replicas, each a Ray actor or training worker; the maximum if ``min_replicas`` is set."""
    min_replicas: Positive | None = None
    """Number of replicas at the start. More are added, up to ``replicas``, while shards are waiting and the cluster
    has capacity, including on nodes that join later. ``null``: start all replicas at once. Not used by training."""
    cpus: Annotated[float, Field(ge=0)] = 1
    """Logical CPUs that each replica reserves."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs that each replica reserves. 0: run on the CPU; below 1: share a GPU; above 1: requires
    ``device_map: auto``."""
    accelerator_type: str | None = None
    """Required GPU model, by Ray's name (``A100``, ``H100``, ``L4``...); ``null``: any."""

    @model_validator(mode="after")
    def _check_resources(self) -> Resources:
        if self.min_replicas is not None and self.min_replicas > self.replicas:
            raise ValueError(f"'min_replicas' ({self.min_replicas}) must not exceed 'replicas' ({self.replicas})")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"'gpus' above 1 must be a whole number, got {self.gpus:g}")
        if self.accelerator_type and not self.gpus:
            raise ValueError(f"'accelerator_type: {self.accelerator_type}' requires 'gpus' above 0")
        return self


class Source(Section):
    """Training images. Every source yields samples with stable ids, in a pseudo-random order keyed with the seed."""

    kind: Literal["miniworld", "folder", "llava_json", "parquet", "webdataset"] = "miniworld"
    """``miniworld``: generated scenes; ``folder``: all images below ``path``, recursively; ``llava_json``: the images
    of a LLaVA instruction file (conversations are ignored); ``parquet``: a Parquet file or a folder of them;
    ``webdataset``: tar files (captions in them are ignored)."""
    path: str | None = None
    """Local path or fsspec URI of the data: a folder, a JSON file, a Parquet file or folder, or a tar file, a folder
    of tar files or a pattern (``/data/shard-{000..123}.tar``). Not used by ``miniworld``."""
    images: str | None = None
    """Base folder of relative image paths in ``llava_json`` and ``parquet``. ``null``: the folder of ``path``."""
    allow_outside: Annotated[bool, AddedLater()] = False
    """Allow rows of ``llava_json`` and ``parquet`` to refer to images outside ``images`` (or the folder of ``path``),
    including other local paths and other hosts. If false, such a row becomes an error row."""
    column: str = "image"
    """``parquet``: name of the image column. It holds bytes, a struct with bytes, or a path or URI."""
    split: Literal["unlabelled", "development", "test"] = "unlabelled"
    """``miniworld``: split from which scenes are drawn. Splits are disjoint."""
    count: Positive | None = 2400
    """Images per round; no two rounds share an image. ``null``: all images of the source (one round only)."""
    max_bytes: Positive = 50_000_000
    """Maximum file size in bytes. A larger image becomes an error row."""
    max_pixels: Positive = 40_000_000
    """Maximum width x height, checked before decoding. A larger image becomes an error row."""
    min_side: Positive = 8
    """Minimum length of the shorter side in pixels. A smaller image becomes an error row."""

    @model_validator(mode="after")
    def _check(self) -> Source:
        if self.kind != "miniworld" and not self.path:
            raise ValueError(f"kind {self.kind!r} requires 'path', the folder or file with the images")
        return self


PairFormat = Literal["trl", "ms-swift", "llama-factory", "rlaif-v", "povid"]


class Imported(Section):
    """External preference pairs, used instead of generated ones; the stage ``generate`` imports them.

    The chosen caption becomes the provisional winner; scoring may invert the pair. The image limits are those of
    ``source``.
    """

    format: PairFormat
    """Format of the records, named after the project that defines it (``docs/data.md``)."""
    path: str
    """Local path or fsspec URI of a ``.json``, ``.jsonl`` or ``.parquet`` file, or of a folder of such files."""
    images: str | None = None
    """Base folder of relative image paths. ``null``: the folder of each file."""
    allow_outside: Annotated[bool, AddedLater()] = False
    """Allow image paths that leave ``images`` (or the folder of ``path``) through ``..``, an absolute path, a symbolic
    link or a URI. If false, such a record becomes an error row: its author could otherwise make jsfree read and export
    any file on this machine."""
    max_tokens: Positive = 1024
    """Maximum tokens per caption. A pair with a longer caption becomes an error row."""


def _check_revision(ref: str, revision: str | None) -> None:
    if revision is not None and not is_hub_syntax(ref):
        raise ValueError(f"'revision' requires a hub id, but 'ref' is {ref!r}")


Preprocessing = Literal["crop", "pad"]
DeviceMap = Literal["single", "auto"]


class CaptionerSettings(Section):
    """The initial captioner, m0."""

    ref: str = "miniworld:captioner"
    """Hub id, local folder or URI of a captioner of a supported family (docs/models.md); ``miniworld:captioner`` is a
    tiny model shipped with jsfree."""
    revision: str | None = None
    """Branch, tag or commit of a hub model. ``null``: the latest commit when the run starts, which is recorded in
    ``models.commits``."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the weights and of the arithmetic in generation and training."""
    preprocessing: Preprocessing = "crop"
    """Image preprocessing in generation, training, evaluation and serving. ``crop``: the center crop of the Hugging
    Face processor; ``pad``: pad to a square with the mean color, as in the original LLaVA code. Other families than
    LLaVA have preprocessing of their own, and take ``crop``."""
    device_map: Annotated[DeviceMap, Placement()] = "single"
    """``single``: each replica uses one GPU; ``auto``: the layers are distributed over the GPUs that
    ``generate.resources.gpus`` reserves, for a model that does not fit on one GPU. Training shards the model over its
    workers instead (``train.zero_stage: 3``)."""

    @model_validator(mode="after")
    def _check(self) -> CaptionerSettings:
        _check_revision(self.ref, self.revision)
        return self

    @property
    def versioned_ref(self) -> str:
        """Reference for ``jsfree.models.loading``: ``ref`` or ``ref@revision``."""
        return f"{self.ref}@{self.revision}" if self.revision else self.ref


class ClipModel(Section):
    """A CLIP model: any image-text model of open_clip with two towers."""

    ref: str
    """open_clip model name (with ``pretrained``), ``hf-hub:`` id, local folder or URI."""
    pretrained: str | None = None
    """open_clip tag of the weights, for an open_clip model name (``openai`` for ViT-L-14-336)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model, as ``captioner.revision``."""

    @model_validator(mode="after")
    def _check(self) -> ClipModel:
        _check_revision(self.ref, self.revision)
        return self

    @property
    def versioned_ref(self) -> str:
        """Reference for ``jsfree.models.clip``: ``ref`` or ``ref@revision``."""
        return f"{self.ref}@{self.revision}" if self.revision else self.ref

    @property
    def label(self) -> str:
        """The reference and the tag of the weights, for people."""
        return f"{self.versioned_ref} ({self.pretrained})" if self.pretrained else self.versioned_ref


class ClipSettings(ClipModel):
    """The CLIP model that scores sentences, and a second one that must agree with it."""

    ref: str = "miniworld:clip"
    """open_clip model name (with ``pretrained``), ``hf-hub:`` id, local folder or URI."""
    second: Annotated[ClipModel | None, AddedLater()] = None
    """A second CLIP model that scores the same pairs. A pair is inverted only if both say so, and dropped if they
    disagree; gaps are means over both, each in units of its own spread. Captions of the evaluation are scored by the
    first only. Requires ``score.judge: clip`` and ``select.strategy: gap``. ``null``: one scorer, as in the paper."""

    @model_validator(mode="after")
    def _check_second(self) -> ClipSettings:
        if self.second is not None and self.second.label == self.label:
            raise ValueError(f"'second' is the same model as the first ({self.label}), with which it always agrees")
        return self

    @property
    def scorers(self) -> tuple[ClipModel, ...]:
        """The models that score pairs: one or two."""
        return (self,) if self.second is None else (self, self.second)


class Ratios(Section):
    """Distribution of the two hallucination ratios of a pair, drawn once per response (paper, section 3.3)."""

    distribution: Literal["fixed", "uniform", "gaussian"] = "gaussian"
    """``fixed``: ``low`` and ``high``; ``uniform``: uniform on [0, 1]; ``gaussian``: N(mean, std^2), clipped to
    [0, 1]."""
    winner: Literal["zero", "drawn"] = "zero"
    """``zero``: the provisional winner is decoded at h = 0, and the loser's ratio is drawn; ``drawn``: both ratios are
    drawn, and the caption with the lower one is the provisional winner, as in the paper."""
    low: Fraction = 0.0
    """``fixed``: ratio of the provisional winner."""
    high: Fraction = 0.1
    """``fixed``: ratio of the provisional loser."""
    mean: float = 0.5
    """``gaussian``: mean."""
    std: Annotated[float, Field(gt=0)] = 0.15
    """``gaussian``: standard deviation."""

    @model_validator(mode="after")
    def _check(self) -> Ratios:
        if self.distribution == "fixed" and self.low >= self.high:
            raise ValueError(f"'low' ({self.low}) must be less than 'high' ({self.high})")
        if self.distribution == "fixed" and self.winner == "zero" and self.low != 0:
            raise ValueError(
                f"'winner: zero' decodes the winner at h = 0, but 'low' is {self.low}; use 'winner: drawn'"
            )
        return self


class Contrast(Section):
    """A published contrastive decoding method, used as a baseline instead of Eq. 3."""

    kind: Literal["vcd", "m3id"]
    """``vcd``: Visual Contrastive Decoding (arXiv 2311.16922); ``m3id``: Multi-Modal Mutual-Information Decoding
    (arXiv 2403.14003)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """``vcd``: weight of the contrast with the second path."""
    beta: Annotated[float, Field(gt=0, le=1)] = 0.1
    """``vcd``: plausibility threshold; tokens below this fraction of the maximum probability are excluded."""
    noise_step: Annotated[int, Field(ge=0, le=999)] | None = 500
    """``vcd``: diffusion step (of 1,000) of the noise added to the second path's image. ``null``: no image."""
    decay: Annotated[float, Field(ge=0)] = 0.02
    """``m3id``: lambda, the growth rate of the correction per generated token."""
    gate: Annotated[float, Field(gt=0, le=1)] = 0.3
    """``m3id``: no correction if the maximum probability is at least this value."""


class Views(Section):
    """Views of the image: the conditional path is the mean of the probabilities that they give.

    Each token is drawn from t = (1 - h) mean_k t_c(view k) + h t_u. The first view is the image itself; the others are
    the preprocessed image, translated.
    """

    count: Positive = 1
    """Number of views. With more than one, fewer captions fit into memory, and each takes more time."""
    shift: Positive = 6
    """Maximum translation of a view in x and in y, in pixels of the preprocessed image. The pixels of its edge are
    repeated."""

    @model_validator(mode="after")
    def _check(self) -> Views:
        translations = (2 * self.shift + 1) ** 2
        if self.count > translations:
            raise ValueError(f"a 'shift' of {self.shift} gives {translations} views, but 'count' is {self.count}")
        return self


class Decoding(Section):
    """Sampling parameters."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature, applied to the logits of each path before mixing. 0: greedy decoding of the mixture."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling threshold, applied to each path before mixing. 1: keep all tokens."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Number of most probable tokens to keep, applied before ``top_p``. 0: keep all tokens."""
    max_new_tokens: Positive = 96
    """Maximum tokens per caption. A caption that reaches it has the finish reason ``length``."""
    stop: tuple[str, ...] = ()
    """Stop strings. A caption ends before the first occurrence of any of them."""
    views: Annotated[Views, AddedLater()] = Views()
    """Views of the image whose probabilities are averaged. One by default: the image itself."""

    @field_validator("stop")
    @classmethod
    def _require_non_empty_stops(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("a stop string must not be empty")
        return stop


class Mode(Decoding):
    """Decoding settings for evaluation."""

    contrast: Contrast | None = None
    """Contrastive decoding baseline. ``null``: ordinary decoding, conditioned on the image."""

    @model_validator(mode="after")
    def _check_views(self) -> Mode:
        if self.contrast is not None and self.views.count > 1:
            raise ValueError(
                f"'contrast' is defined for one view of the image, but 'views.count' is {self.views.count}; set it to 1"
            )
        return self


MixingName = Literal["probability", "logit"]
Compiling = Literal["none", "inductor", "cuda_graphs"]


class Generate(Section):
    """Stage 1: two captions per image by dual-path decoding (Eq. 3)."""

    ratios: Ratios = Ratios()
    decoding: Decoding = Decoding()
    loser: Annotated[Literal["ratio", "noised_image", "bad_prompt", "continuation"], AddedLater()] = "ratio"
    """How the provisional loser is made. ``ratio``: decoded at its hallucination ratio. The others are published
    baselines, which require ``ratios.winner: zero``. ``noised_image``: decoded at h = 0 from the image with diffusion
    noise (POVID, arXiv 2402.11411; STIC, arXiv 2405.19716); ``bad_prompt``: decoded at h = 0 after another prompt
    (STIC); ``continuation``: the first half of the winner's tokens, continued without the image (DropoutNTP; MPO,
    arXiv 2411.10442). Its stored ratio is 0 with ``noised_image`` and ``bad_prompt``, and 1 with ``continuation``."""
    noise_step: Annotated[Annotated[int, Field(ge=0, le=999)], AddedLater()] = 500
    """``loser: noised_image``: diffusion step (of 1,000) of the noise."""
    bad_prompt: Annotated[str, AddedLater()] = (
        "Describe the image, and invent further objects that often occur in such a scene."
    )
    """``loser: bad_prompt``: the loser's prompt. Training uses both captions with the run's own ``prompt``. The default
    is for models that follow instructions. MiniWorld's m0 answers it with one word or none; set a variant of its only
    prompt, ``Imagine. Describe image in detail.``"""
    samples: Annotated[Annotated[int, Field(ge=0)], AddedLater()] = 0
    """Further captions per image at h = 0, in addition to the pair. Above 0, log-probabilities of all captions are
    stored, from which ``select.strategy: coverage`` verifies sentences. The prefill of the image is shared."""
    mixing: MixingName = "probability"
    """``probability``: mixture of probabilities (Eq. 3); ``logit``: geometric mixture, for comparison."""
    slots: Annotated[Positive, Placement()] = 64
    """Maximum captions that a replica decodes concurrently, limited further by ``kv_cache_gib``."""
    kv_cache_gib: Annotated[Annotated[float, Field(gt=0)] | None, Placement()] = None
    """KV cache size per replica, in GiB. ``null``: 90% of the GPU memory that remains after the model is loaded, or
    half of the available memory on a CPU. Set it if replicas share a GPU (``gpus`` below 1)."""
    compile: Annotated[Compiling, Placement()] = "none"
    """``none``: eager execution; ``inductor``: ``torch.compile``, which takes minutes at the first step and needs a
    C++ compiler on CPUs; ``cuda_graphs``: capture each decoding step once and replay it, which removes Python
    overhead."""
    resources: Annotated[Resources, Placement()] = Resources()

    @model_validator(mode="after")
    def _check_loser(self) -> Generate:
        if self.loser != "ratio" and self.ratios.winner != "zero":
            raise ValueError(f"'loser: {self.loser}' requires 'ratios.winner: zero', but it is {self.ratios.winner}")
        if self.loser in ("noised_image", "bad_prompt") and self.samples:
            raise ValueError(
                f"'samples' ({self.samples}) cannot be used with 'loser: {self.loser}': the loser's log-probabilities"
                " would not be those of the image and the prompt; set 'samples: 0', or 'loser: ratio'"
            )
        if not self.bad_prompt.strip():
            raise ValueError("'bad_prompt' must not be empty")
        return self

    @model_validator(mode="after")
    def _check_views(self) -> Generate:
        if self.mixing != "probability" and self.decoding.views.count > 1:
            raise ValueError(
                f"'mixing: {self.mixing}' is defined for one view of the image, but 'decoding.views.count' is"
                f" {self.decoding.views.count}; set it to 1"
            )
        return self


class Score(Section):
    """Stage 2: CLIP similarity between each sentence and the image, or a baseline for it."""

    judge: Annotated[Literal["clip", "captioner"], AddedLater()] = "clip"
    """What scores the sentences of pairs. ``clip``: the cosine with the image, as in the paper; ``captioner``: the
    probability with which m0 answers ``question`` with yes rather than no (the self-feedback of RLAIF-V, arXiv
    2405.17220), a baseline that needs a pass of the captioner, with ``generate.resources``. Captions of the evaluation
    are always scored by CLIP."""
    question: Annotated[str, AddedLater()] = "Is this true? {sentence}"
    """``judge: captioner``: the question for each ``{sentence}``. The default is one that MiniWorld's m0 was trained
    on; for LLaVA, ask for one word, for instance ``{sentence} Is this statement about the image correct? Answer with
    yes or no.``"""
    with_generation: Annotated[bool, Placement()] = False
    """Score captions, of pairs and of the evaluation, in the replicas that generate them. Each image is read once, and
    the scores are the same, but captioner and CLIP must fit on one GPU together. ``resources`` then applies only to
    captions that were generated without scores, and to imported pairs."""
    resources: Annotated[Resources, Placement()] = Resources()

    @model_validator(mode="after")
    def _check(self) -> Score:
        if self.judge == "captioner" and self.with_generation:
            raise ValueError("'judge: captioner' scores pairs in a stage of its own; set 'with_generation: false'")
        if self.question.count("{sentence}") != 1:
            raise ValueError(f"'question' must contain '{{sentence}}' exactly once, got {self.question!r}")
        return self

    @property
    def judge_name(self) -> str:
        """What reports call the judge of pairs: ``CLIP`` or ``m0``."""
        return {"clip": "CLIP", "captioner": "m0"}[self.judge]

    @property
    def score_name(self) -> str:
        """What reports call the score that the judge gives a sentence."""
        return {"clip": "CLIP cosine", "captioner": "probability of yes by m0"}[self.judge]


class Coverage(Section):
    """Verification of sentences and composition of captions (``select.strategy: coverage``)."""

    signals: Literal["clip+likelihood", "clip", "likelihood"] = "clip+likelihood"
    """What a sentence is verified by: the CLIP cosine, the captioner's own log-probability with the image, or both."""
    edited: Fraction = 0.35
    """Fraction of the pairs whose rejected caption is the chosen one with an error: a sentence omitted or repeated."""
    repeated: Fraction = 1 / 3
    """Fraction of the edits that repeat a sentence; the others omit one that is certainly true."""


class Select(Section):
    """Stage 3: selection of the scored pairs to train on."""

    strategy: Annotated[Literal["gap", "coverage"], AddedLater()] = "gap"
    """``gap``: the pairs of stage 1, by the gap of their mean scores (paper); ``coverage``: pairs formed from all
    captions of an image by the sentences that are verified in each, and composed captions as targets of the NLL
    (requires ``generate.samples``). Splits are those of the gaps of the strategy's own scores."""
    coverage: Annotated[Coverage, AddedLater()] = Coverage()
    inverted: Literal["swap", "drop", "keep", "random"] = "swap"
    """Treatment of a pair whose provisional loser scores higher. ``swap``: swap chosen and rejected, as in the paper;
    ``drop``: discard the pair; ``keep``: keep the order of the ratios (no verification, for ablations); ``random``:
    select the same pairs as ``swap``, but draw chosen and rejected of every pair at random, which measures what the
    order is worth."""
    splits: Positive = 10
    """Number of equal splits of the pairs, sorted by ascending score gap."""
    first: Positive = 4
    """First split to keep, counted from 1."""
    last: Positive = 7
    """Last split to keep."""
    keep_truncated: bool = False
    """Keep pairs with a caption that was truncated at ``max_new_tokens`` and therefore has no end token."""
    repeating: Literal["keep", "drop"] = "keep"
    """Treatment of a pair whose chosen caption repeats more sentences than the rejected one. ``drop`` discards it,
    because it teaches repetition, which the mean sentence score does not penalize."""
    max_pairs: Positive | None = None
    """Maximum number of pairs, a random subset of the kept splits. ``null``: no limit."""

    @model_validator(mode="after")
    def _check(self) -> Select:
        if not self.first <= self.last <= self.splits:
            raise ValueError(
                f"'first' ({self.first}), 'last' ({self.last}) and 'splits' ({self.splits}) must be in ascending order"
            )
        if self.inverted == "random" and self.strategy != "gap":
            raise ValueError(f"'inverted: random' requires 'strategy: gap', but 'strategy' is {self.strategy}")
        return self


class Validation(Section):
    """Held-out pairs, early stopping and the choice of the published weights."""

    pairs: Annotated[int, Field(ge=0)] = 0
    """Number of selected pairs to hold out at random; a multiple of the number of training workers. 0: none."""
    every: Positive = 20
    """Optimizer steps between validations; there is also one after the last step."""
    patience: Positive | None = None
    """Validations without a lower loss before training stops early. ``null``: no early stopping."""
    publish: Literal["last", "best"] = "last"
    """Weights to publish. ``last``: those after the last step; ``best``: those with the lowest validation loss."""


class Lora(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685). They are merged into the published model."""

    rank: Positive = 128
    """Rank of the adapters."""
    alpha: Positive = 256
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        *("linear_1", "linear_2"),
    )
    """Names of the linear layers with adapters. The default is all those of the language model and the projector. The
    vision tower never has adapters."""


class Train(Section):
    """Stage 4: DPO with a frozen reference model (Eq. 1-2), NLL, or both."""

    objective: Annotated[Literal["dpo", "dpo+nll", "nll"], AddedLater()] = "dpo"
    """``dpo``: the loss below, with ``sft_weight`` on the chosen caption; ``dpo+nll``: with ``sft_weight`` on the
    composed caption of ``select.strategy: coverage`` instead; ``nll``: ``sft_weight`` times the NLL alone, without
    preferences and reference model."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Scale of the implicit reward. The paper's equations omit it (1); published LLaVA runs use 0.1."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """``sigmoid``: DPO loss (Eq. 1-2); ``ipo``: squared difference between the per-token margin and 1 / (2 beta)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """``sigmoid``: assumed fraction of pairs with inverted labels."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean per-token negative log-likelihood (NLL) that is added to the loss; ``objective`` says of which
    caption."""
    reference: Literal["previous", "seed"] = "previous"
    """Reference model. ``previous``: the model from which the round starts; ``seed``: m0 in every round."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate."""
    epochs: Positive = 2
    """Passes over the selected pairs."""
    pairs_per_step: Positive = 32
    """Global batch size: pairs per optimizer step, summed over all workers."""
    pairs_per_worker: Positive = 16
    """Pairs per forward pass of a worker. Gradients are accumulated up to ``pairs_per_step``."""
    warmup_fraction: Fraction = 0.05
    """Fraction of the steps with linear warmup; cosine decay to zero follows."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Maximum gradient norm; larger gradients are clipped."""
    trained_layers: Annotated[int, Field(ge=0)] | None = None
    """Number of language model layers to train, counted from the last, in addition to the projector; all other
    weights, including embeddings and head, are frozen. 0: the projector only. ``null``: the projector and the whole
    language model, as in the paper. The vision tower is always frozen. Lower it to reduce optimizer memory."""
    lora: Lora | None = None
    """Train low-rank adapters. ``null``: train the weights themselves."""
    zero_stage: Literal[1, 2, 3] = 2
    """DeepSpeed ZeRO stage. 1: shard the optimizer state; 2: also gradients; 3: also weights."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """State to keep in CPU memory instead of GPU memory. ``optimizer``: the optimizer state; ``all``: the weights too
    (requires ``zero_stage: 3``)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory and takes more time."""
    attention: Annotated[Literal["sdpa", "flex"], Placement()] = "sdpa"
    """Attention implementation. ``sdpa``: scaled dot-product attention with a dense mask; ``flex``: FlexAttention,
    which skips masked blocks and is compiled at the first step (GPUs only)."""
    cache_vision_features: Annotated[bool, Placement()] = False
    """Cache the output of the frozen vision tower on disk (1.2 MB per image for LLaVA-1.5), so that each image is
    encoded once."""
    validation: Validation = Validation()
    chosen_alarm: Annotated[Annotated[float, Field(gt=0)] | None, Placement()] = 0.5
    """Log a warning if the log-probability per token of chosen captions falls by more than this value. ``null``:
    never."""
    checkpoint_every: Annotated[Positive, Placement()] = 50
    """Optimizer steps between checkpoints. There is none after the last step."""
    keep: Annotated[Positive, Placement()] = 1
    """Number of checkpoints to keep. One more exists while a checkpoint is being written."""
    max_failures: Annotated[int, Field(ge=0), Placement()] = 2
    """Worker failures from which Ray Train recovers before the stage fails."""
    resources: Annotated[Resources, Placement()] = Resources()

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.resources.min_replicas is not None:
            raise ValueError(
                "'resources.min_replicas' cannot be used for training, which has a fixed number of workers"
            )
        if self.resources.gpus not in (0, 1):
            raise ValueError(
                f"a training worker uses 0 or 1 GPUs, not {self.resources.gpus:g}; set 'resources.gpus: 1', and use"
                " more 'replicas' with 'zero_stage: 3' for a larger model"
            )
        if self.pairs_per_step % self.resources.replicas:
            raise ValueError(
                f"'pairs_per_step' ({self.pairs_per_step}) must be a multiple of the"
                f" {self.resources.replicas} training workers"
            )
        if self.attention == "flex" and not self.resources.gpus:
            raise ValueError("'attention: flex' has no gradients on CPUs; set 'attention: sdpa' or 'resources.gpus: 1'")
        if self.validation.pairs % self.resources.replicas:
            raise ValueError(
                f"'validation.pairs' ({self.validation.pairs}) must be a multiple of the"
                f" {self.resources.replicas} training workers"
            )
        if not self.validation.pairs and (self.validation.patience is not None or self.validation.publish == "best"):
            raise ValueError("'validation.patience' and 'validation.publish: best' require 'validation.pairs'")
        if self.lora is not None and self.trained_layers is not None:
            raise ValueError("'lora' and 'trained_layers' are mutually exclusive; set one of them to null")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(
                f"'offload: all' requires 'zero_stage: 3', not {self.zero_stage}: the other stages do not shard weights"
            )
        if self.objective != "dpo" and not self.sft_weight:
            raise ValueError(f"'objective: {self.objective}' requires 'sft_weight' above 0, the weight of the NLL")
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("'label_smoothing' requires 'loss: sigmoid', not 'ipo'")
        share = self.pairs_per_step // self.resources.replicas
        if share % min(self.pairs_per_worker, share):
            raise ValueError(
                f"'pairs_per_worker' ({self.pairs_per_worker}) must divide the {share} pairs per worker and step"
            )
        return self


class EvaluationSource(Source):
    """Evaluation images, disjoint from the training images.

    If ``path`` is not set and the kind is that of ``source``, images are taken from the same location as for training,
    but from the end of the order.
    """

    split: Literal["unlabelled", "development", "test"] = "test"
    """``miniworld``: split from which scenes are drawn. Splits are disjoint."""
    count: Positive | None = 600
    """Number of images, taken from the end of the order; training takes its images from the start. ``null``: all
    images that are not used for training."""
    first: Annotated[int, Field(ge=0)] = 0
    """``miniworld``: index of the first scene in the split. Not used by other sources."""


class Evaluate(Section):
    """Stage 5: captions of the models before and after training, and their metrics."""

    source: EvaluationSource = EvaluationSource()
    """Evaluation images. Metrics use the ground truth on MiniWorld and are label-free on other sources."""
    modes: dict[str, Mode] = {"greedy": Mode(temperature=0), "sampled": Mode(temperature=1)}
    """Decoding settings by name. A mode named ``greedy`` has temperature 0 by default."""
    bootstrap: Positive = 2000
    """Bootstrap resamples for each 95% confidence interval."""

    @field_validator("modes", mode="before")
    @classmethod
    def _default_greedy_temperature(cls, modes: Any) -> Any:
        """Set the default temperature of a mode named ``greedy`` to 0."""
        if isinstance(modes, dict) and isinstance(modes.get("greedy"), dict):
            return {**modes, "greedy": {"temperature": 0, **modes["greedy"]}}
        return modes


class RoundsStop(Section):
    """Stop rule of later rounds: ``jsfree run`` ends after the first round whose model became worse.

    From round 2 on, the model of a round is compared with the one that the round started from, by their captions of
    the evaluation images. Only label-free metrics are used, and the rule sets limits to both quality and its price: a
    captioner that says less, or repeats what is certain, scores higher with CLIP. A metric exceeds its limit only if
    the whole 95 % interval of its change, paired by image, does. If one of them does, the run ends normally, and its
    result, which is served and published, is the last model before it.
    """

    mode: str | None = None
    """Evaluation mode whose captions are compared. ``null``: the first of ``evaluate.modes``."""
    metric: Literal["clip_score", "low_clip_sentences"] = "clip_score"
    """Metric of quality. ``clip_score``: mean CLIP cosine of a caption's sentences, which must not fall;
    ``low_clip_sentences``: fraction of sentences with a low CLIP cosine, which must not rise."""
    max_loss: Annotated[float, Field(ge=0)] = 0.0
    """Largest change of ``metric`` in the wrong direction, in its own units: a cosine, or a fraction of sentences."""
    max_lost_words: Fraction = 0.05
    """Largest decrease of the number of words, as a fraction."""
    max_added_repeats: Annotated[float, Field(ge=0)] = 0.05
    """Largest increase of repeated sentences per caption."""
    max_added_truncated: Fraction = 0.05
    """Largest increase of the fraction of captions that are truncated at ``max_new_tokens``."""


class Autoscaling(Section):
    """Replicas of a served model that follow its load."""

    min: Annotated[int, Field(ge=0)] = 1
    """Minimum number of replicas. With 0, a request that finds none waits for one to start."""
    max: Positive
    """Maximum number of replicas."""
    target: Annotated[float, Field(gt=0)] = 16
    """Requests in progress per replica at which the number of replicas stays as it is."""
    up_after_s: Annotated[float, Field(ge=0)] = 30
    """Seconds of higher load after which replicas are added."""
    down_after_s: Annotated[float, Field(ge=0)] = 600
    """Seconds of lower load after which replicas are removed."""

    @model_validator(mode="after")
    def _check(self) -> Autoscaling:
        if self.min > self.max:
            raise ValueError(f"'min' ({self.min}) must not exceed 'max' ({self.max})")
        return self


class ServedModel(Resources):
    """Replicas of a served model and the resources that each reserves."""

    replicas: Positive = 1
    """Number of replicas; requests are distributed among them."""
    autoscaling: Autoscaling | None = None
    """Number of replicas that follows the load. ``null``: always ``replicas``."""

    @property
    def first_replicas(self) -> int:
        """Number of replicas with which serving starts."""
        return self.replicas if self.autoscaling is None else self.autoscaling.min

    @property
    def most_replicas(self) -> int:
        """Maximum number of replicas."""
        return self.replicas if self.autoscaling is None else self.autoscaling.max

    @model_validator(mode="after")
    def _check_serving(self) -> ServedModel:
        if self.min_replicas is not None:
            raise ValueError("'min_replicas' cannot be used for serving; set 'replicas', which is constant")
        return self


class Vllm(Section):
    """vLLM, with ``engine: vllm``."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of the GPU's memory that vLLM uses for weights, activations and KV cache. ``null``: 0.9 of the fraction
    of a GPU that the replica reserves (``gpus``), so that two models with ``gpus: 0.5`` fit on one. ``kv_cache_gib``
    sets the size of the KV cache instead. On CPUs: ignored."""
    enforce_eager: bool = False
    """Do not compile the model and capture CUDA graphs: starts faster and takes less memory, but decodes slower. On
    CPUs always."""


class Serve(Section):
    """The HTTP server of ``jsfree serve``. Excluded from fingerprints."""

    host: str = "127.0.0.1"
    """Address to listen on. Addresses other than loopback need a key, or ``no_auth``."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    haproxy: bool = False
    """Put HAProxy in front of the server instead of Ray Serve's proxy: faster, but its ports 8404 (statistics) and 9101
    (metrics) are open on all interfaces without a key. On a cluster, the nodes need the variables that ``jsfree serve
    --write-yaml`` names."""
    keys_file: str | None = None
    """File of the hashes of API keys that ``jsfree serve keys add`` writes; every node that serves HTTP reads it.
    ``null``: the file in ``JSFREE_KEYS_FILE``, or else ``~/.config/jsfree/serve-keys.json`` if it exists. A key in
    ``JSFREE_API_KEY`` is valid too."""
    no_auth: bool = False
    """Answer everyone who can reach the server, if it has no keys. Otherwise it answers its own machine only."""
    cors_origins: list[str] = []
    """Web sites whose pages may use the server from a browser, such as ``https://example.org``; ``*`` for all."""
    allowed_image_hosts: list[str] = []
    """Hosts from which the server fetches images (``https://`` URLs with these exact names). Empty: only data URLs."""
    access_log: str | None = None
    """File that receives a line of JSON for each request. ``null``: the log file of Serve's replica."""
    before: ServedModel = ServedModel()
    """Replicas of m0."""
    after: ServedModel = ServedModel()
    """Replicas of the last model of the run."""
    between: ServedModel = ServedModel()
    """Replicas of each of the other models, with ``models: all``."""
    models: Literal["ends", "all"] = "ends"
    """Which models of a run with several rounds are served: m0 and the last one, or those between them too."""
    scores: Literal["after", "deployment", "off"] = "after"
    """Where the run's CLIP model scores the sentences of comparisons: in the replicas of ``after``, where it is loaded
    when the first comparison arrives, in a deployment of its own (``scorer``), or not at all."""
    scorer: ServedModel = ServedModel()
    """Replicas of the CLIP model, with ``scores: deployment``."""
    engine: Literal["jsfree", "vllm"] = "jsfree"
    """Program that decodes. ``vllm`` needs the extra ``vllm``, and answers requests with one image, one view of it and
    without a hallucination ratio."""
    vllm: Vllm = Vllm()
    """vLLM's own settings."""
    slots: Positive = 16
    """Maximum captions that a replica decodes concurrently, limited further by ``kv_cache_gib``."""
    dual_path_slots: Positive = 4
    """The same of captions with ``hallucination_ratio``, with more ``views`` than the server's own number, or without
    an image. A replica allocates their memory when the first of them arrives."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """KV cache size per replica in GiB, as ``generate.kv_cache_gib``. With ``engine: vllm`` on CPUs, ``null`` is 1."""
    max_waiting: Annotated[int, Field(ge=0)] = 64
    """Maximum captions waiting for a slot of a replica. Further requests are rejected with status 429."""
    max_requests: Positive = 128
    """Maximum concurrent requests. Further requests are rejected with status 429 before their body is read."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 120
    """Maximum time for a request, in seconds. It then fails with status 408, and its slots are freed."""
    drain_s: Annotated[float, Field(gt=0)] = 30
    """Seconds that a replica which is to end has for its requests in progress; it takes no new ones."""
    body_timeout_s: Annotated[float, Field(gt=0)] = 10
    """Maximum time in which the body of a request must arrive, in seconds. Requests whose body is arriving do not
    count towards ``max_requests``."""
    max_body_memory: Positive = 134_217_728
    """Maximum total size of the bodies of concurrent requests, in bytes. Further bodies are rejected with status
    429."""
    stall_s: Annotated[float, Field(gt=0)] = 120
    """Seconds without decoding progress after which a replica is considered unhealthy and is replaced."""
    max_new_tokens: Positive = 512
    """Maximum, and default, number of tokens per caption."""
    views: Views = Views()
    """Views of the image whose probabilities are averaged, for captions whose request does not say how many."""
    max_views: Positive = 5
    """Maximum ``views`` that a request may ask for."""
    max_choices: Positive = 8
    """Maximum captions per request (``n``)."""
    max_prompt_chars: Positive = 4000
    """Maximum length of the prompt in characters."""
    max_image_bytes: Positive = 10_000_000
    """Maximum size of an image file, checked before its base64 is decoded. It determines the maximum body size."""
    max_pixels: Positive = 12_500_000
    """Maximum width x height of an image, checked before decoding. Larger images are rejected."""
    min_side: Positive = 8
    """Minimum length of the shorter side in pixels. Smaller images are rejected."""

    @model_validator(mode="after")
    def _check_engine(self) -> Serve:
        if self.engine == "vllm" and self.views.count > 1:
            raise ValueError(
                f"'engine: vllm' sees one view of an image, but 'views.count' is {self.views.count}; set it to 1, or"
                " use 'engine: jsfree'"
            )
        return self

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of a request body, in bytes.

        The sum of the largest image in base64 (with 10% for line breaks or escapes), the longest prompt with all its
        characters escaped, and 64 KiB for other fields.
        """
        return (self.max_image_bytes + 2) // 3 * 4 * 11 // 10 + 6 * self.max_prompt_chars + 65536

    def placement_of(self, role: str) -> ServedModel:
        """Replicas of a model, and the resources that each reserves.

        Args:
            role: ``before``, ``after``, or the name of a model between them.
        """
        return {"before": self.before, "after": self.after}.get(role, self.between)


class Ray(Section):
    """The Ray cluster. Excluded from fingerprints."""

    address: str | None = None
    """Address of a cluster. ``null``: start a local cluster for this run; ``auto``: connect to the cluster of this
    machine or job."""
    num_cpus: Positive | None = None
    """Logical CPUs of a local cluster. ``null``: as many as the stages reserve, and at least 4."""

    @property
    def cluster_address(self) -> str | None:
        """``address``, or that of the environment's ``RAY_ADDRESS``; None for a local cluster."""
        return self.address or os.environ.get("RAY_ADDRESS") or None


class ModelFiles(Section):
    """Downloads of models. Excluded from fingerprints."""

    cache: str | None = None
    """Folder for downloaded models, on every node. ``null``: the environment variable ``JSFREE_CACHE``; if it is not
    set, ``~/.cache/jsfree``, and the cache of Hugging Face for hub models."""
    offline: bool = False
    """Do not access the hub; its models must be in the cache. ``HF_HUB_OFFLINE=1`` has the same effect."""
    commits: dict[str, str] = {}
    """Commit of each hub model, recorded when the run starts, so that all nodes use the same files throughout."""


class RunConfig(Section):
    """Configuration of a run."""

    run: str = "runs/miniworld"
    """Folder of the run: a local path or an fsspec URI."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the image order, of sampling and of the order of training pairs."""
    rounds: Positive = 1
    """Number of self-improvement rounds. Each starts from the model of the previous round."""
    rounds_stop: Annotated[RoundsStop | None, AddedLater()] = None
    """Rule that ends the run before ``rounds`` if a round makes the captions worse; ``{}`` is the rule with its
    defaults. ``null``: no rule; the report then shows where the default rule would have ended the run."""
    prompt: str = "Describe image in detail."
    """Prompt for every image."""
    shard_rows: Positive = 200
    """Samples per shard. A shard is one file and the unit of scheduling and resumption."""
    max_failed_fraction: Fraction = 0.01
    """Maximum fraction of failed rows per stage. If more rows fail, the stage fails."""
    reuse: Annotated[tuple[str, ...], Placement()] = ()
    """Folders or URIs of other runs. A stage that one of them has finished with the same inputs is taken from there
    instead of being made again; if a run of the list is making it now, this one waits for it."""
    source: Source = Source()
    imported: Imported | None = None
    """External pairs, for a run of one round. ``null``: generate pairs from ``source``."""
    captioner: CaptionerSettings = CaptionerSettings()
    clip: ClipSettings = ClipSettings()
    generate: Generate = Generate()
    score: Score = Score()
    select: Select = Select()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    models: Annotated[ModelFiles, Placement()] = ModelFiles()
    serve: Annotated[Serve, Placement()] = Serve()
    ray: Annotated[Ray, Placement()] = Ray()

    @model_validator(mode="before")
    @classmethod
    def _inherit_evaluation_path(cls, settings: Any) -> Any:
        """Use the location of ``source`` as the default of ``evaluate.source`` if both are of one kind."""
        evaluate, source = (_section(settings, key) for key in ("evaluate", "source"))
        own = _section(evaluate, "source")
        if own.get("path") or not source.get("path") or own.get("kind") != source.get("kind"):
            return settings
        place = {key: source[key] for key in ("images", "column", "allow_outside") if key in source}
        return {**settings, "evaluate": {**evaluate, "source": {**place, **own, "path": source["path"]}}}

    @field_validator("run", "prompt")
    @classmethod
    def _require_text(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("must not be empty")
        return text

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.rounds > 1 and self.source.count is None:
            raise ValueError("more than one round requires 'source.count', the number of images per round")
        if self.select.strategy == "coverage" and not self.generate.samples:
            raise ValueError(
                "'select.strategy: coverage' requires several captions per image; set 'generate.samples', for instance"
                " to 3"
            )
        return self

    @model_validator(mode="after")
    def _check_rounds_stop(self) -> RunConfig:
        mode, modes = self.rounds_stop and self.rounds_stop.mode, self.evaluate.modes
        if mode is not None and mode not in modes:
            raise ValueError(f"'rounds_stop.mode' is {mode!r}, but 'evaluate.modes' has {', '.join(modes)}")
        return self

    @model_validator(mode="after")
    def _check_imported(self) -> RunConfig:
        if self.imported is not None and self.rounds > 1:
            raise ValueError(
                f"'imported' pairs are used in one round, but 'rounds' is {self.rounds}; set 'rounds: 1', and start"
                " another run from the model of this one"
            )
        if self.imported is not None and self.select.strategy == "coverage":
            raise ValueError("'select.strategy: coverage' cannot be used with 'imported' pairs; set it to gap")
        return self

    @model_validator(mode="after")
    def _check_second_scorer(self) -> RunConfig:
        if self.clip.second is None:
            return self
        if self.select.strategy != "gap":
            raise ValueError(
                f"'clip.second' requires 'select.strategy: gap', but it is {self.select.strategy}, which verifies"
                " sentences by one CLIP model and the captioner's likelihood; remove 'clip.second'"
            )
        if self.score.judge != "clip":
            raise ValueError(f"'clip.second' requires 'score.judge: clip', but it is {self.score.judge}")
        return self

    @model_validator(mode="after")
    def _check_device_map(self) -> RunConfig:
        gpus = self.generate.resources.gpus
        if self.captioner.device_map == "auto" and gpus <= 1:
            raise ValueError(
                f"'captioner.device_map: auto' requires several GPUs, but 'generate.resources.gpus' is {gpus:g}; set it"
                " to 2 or more, or use 'device_map: single'"
            )
        if self.captioner.device_map == "single" and gpus > 1:
            raise ValueError(
                f"'generate.resources.gpus' is {gpus:g}, but 'captioner.device_map: single' uses one GPU;"
                " set 'gpus: 1', or 'device_map: auto' for a model larger than a GPU"
            )
        if self.score.resources.gpus > 1:
            raise ValueError(f"'score.resources.gpus' is {self.score.resources.gpus:g}, but CLIP uses at most one GPU")
        return self

    @property
    def nll_caption(self) -> Literal["chosen", "target"]:
        """The caption of a pair whose NLL is part of the loss: the composed one if the objective asks for it."""
        return "target" if self.train.objective != "dpo" and self.select.strategy == "coverage" else "chosen"

    @property
    def trained_captions(self) -> tuple[str, ...]:
        """The captions of a pair that training reads (``train.objective``)."""
        if self.train.objective == "nll":
            return (self.nll_caption,)
        return ("chosen", "rejected", *(["target"] if self.nll_caption == "target" else []))

    @property
    def clip_fingerprint(self) -> str:
        """Hash of the settings that affect the scores of the first CLIP model, whatever else scores pairs."""
        score = self.score.model_copy(update={name: Score.model_fields[name].default for name in ("judge", "question")})
        clip = self.clip.model_copy(update={"second": None})
        return self.model_copy(update={"score": score, "clip": clip}).fingerprint("clip", "score")

    def fingerprint(self, *paths: str) -> str:
        """Hash the settings at the dotted ``paths``, without those that do not affect results."""
        settings = fingerprinted_settings(self)
        chosen = {path: _value_at(settings, path) for path in paths}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def own_fingerprint(self) -> str:
        """Hash of all settings that affect results, without the location of the run."""
        return self.fingerprint(*(set(fingerprinted_settings(self)) - {"run"}))

    def to_yaml(self) -> str:
        """Format the resolved configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=math.inf)


def _section(settings: Any, key: str) -> dict[str, Any]:
    """Return the section ``key`` of unvalidated settings, or an empty one."""
    section = settings.get(key) if isinstance(settings, dict) else None
    return section if isinstance(section, dict) else {}


def _value_at(settings: Any, path: str) -> Any:
    for part in path.split("."):
        settings = settings[part]
    return settings


def fingerprinted_settings(value: Any) -> Any:
    """Convert a section to plain values, without the settings that fingerprints exclude."""
    if isinstance(value, Section):
        fields = type(value).model_fields
        return {name: fingerprinted_settings(each) for name, each in value if _is_fingerprinted(fields[name], each)}
    if isinstance(value, dict):
        return {key: fingerprinted_settings(each) for key, each in value.items()}
    return [fingerprinted_settings(each) for each in value] if isinstance(value, list | tuple) else value


def _is_fingerprinted(field: FieldInfo, value: Any) -> bool:
    marks = {type(mark) for mark in field.metadata}
    return Placement not in marks and not (AddedLater in marks and value == field.default)
