"""Every setting of a run and its default, documented below the field and checked when it is built.

The defaults are MiniWorld's, so an empty file is a run that works anywhere. ``jsfree.config.loading`` reads files and
overrides.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from jsfree.uris import is_hub_syntax

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Placement:
    """Marks a setting that only says where work runs, or guards it against loss, and changes no result.

    It is no part of a fingerprint, so that a run may go on with another value. What such a setting can change are
    the last bits of floating-point results.
    """


class AddedLater:
    """Marks a setting that older runs do not know: at its default it is no part of a fingerprint."""


class Section(BaseModel):
    """A group of settings: unknown keys and numbers that are not finite are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Resources(Section):
    """Where the replicas of a stage run; never part of a fingerprint.

    A replica goes to any node with room for it, so how many a node takes follows from what each reserves: a node
    of 8 GPUs and 96 CPUs takes 8 replicas of ``gpus: 1``, 32 of ``gpus: 0.25``, and 6 of ``cpus: 16``. Replicas
    are spread over the nodes, training workers packed onto as few as can be.
    """

    replicas: Positive = 2
    """Model replicas, one Ray actor (or training worker) each; with ``min_replicas``, the most there may be."""
    min_replicas: Positive | None = None
    """Replicas to start with; more are added, up to ``replicas``, while shards wait and the cluster has room, also
    on nodes that join later. ``null``: all from the start. Not for training."""
    cpus: Annotated[float, Field(ge=0)] = 1
    """Logical CPUs a replica reserves."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs a replica reserves; a fraction shares a GPU, more than one needs ``device_map: auto``. 0 runs on the
    CPU."""
    accelerator_type: str | None = None
    """Ray's name of the GPU that a replica must get (``A100``, ``H100``, ``L4``...); ``null``: any."""

    @model_validator(mode="after")
    def _check_resources(self) -> Resources:
        if self.min_replicas is not None and self.min_replicas > self.replicas:
            raise ValueError(f"'min_replicas' ({self.min_replicas}) is more than 'replicas' ({self.replicas})")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"'gpus' above 1 must be whole, got {self.gpus:g}")
        if self.accelerator_type and not self.gpus:
            raise ValueError(f"'accelerator_type: {self.accelerator_type}' needs 'gpus' above 0")
        return self


class Source(Section):
    """Where images come from. Every source yields samples with a stable id, in an order drawn by the seed."""

    kind: Literal["miniworld", "folder", "llava_json", "parquet", "webdataset"] = "miniworld"
    """``miniworld`` draws scenes; ``folder`` takes every image below ``path``; ``llava_json`` reads a LLaVA
    instruct file (conversations dropped, one sample an image); ``parquet`` reads a file or folder of tables;
    ``webdataset`` reads tar files (images alone, captions in them are not used)."""
    path: str | None = None
    """Folder, JSON file, Parquet file or folder, or tar file, folder of tar files or pattern of their names
    (``/data/shard-{000..123}.tar``); local, or any fsspec URI. Not used by ``miniworld``."""
    images: str | None = None
    """Folder that relative image paths of ``llava_json`` and ``parquet`` start from; default: beside ``path``."""
    allow_outside: Annotated[bool, AddedLater()] = False
    """Whether the rows of ``llava_json`` and ``parquet`` may name images outside of ``images`` (or the folder of
    ``path``): other paths of this machine, other hosts. Otherwise such a row is an error row."""
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


PairFormat = Literal["trl", "ms-swift", "llama-factory", "rlaif-v", "povid"]


class Imported(Section):
    """Preference pairs of somebody else's, taken in place of generated ones: the stage ``generate`` reads them.

    Their chosen caption is the provisional winner, which scoring may invert. Limits of images are those of ``source``.
    """

    format: PairFormat
    """Layout of the records: TRL's, ms-swift's, LLaMA-Factory's, RLAIF-V's or POVID's (``docs/data.md``)."""
    path: str
    """A ``.json``, ``.jsonl`` or ``.parquet`` file, or a folder of them; local, or any fsspec URI."""
    images: str | None = None
    """Folder that relative image paths start from; default: beside each file."""
    allow_outside: Annotated[bool, AddedLater()] = False
    """Whether image paths of the records may lead out of ``images`` (without it: of the folder of ``path``), by
    ``..``, an absolute path, a symbolic link or a URI. A record that does is an error row otherwise, because whoever
    wrote it could have any file of this machine read and exported."""
    max_tokens: Positive = 1024
    """A pair with a caption of more tokens is an error row."""


def _check_revision(ref: str, revision: str | None) -> None:
    if revision is not None and not is_hub_syntax(ref):
        raise ValueError(f"'revision' belongs to a model of the hub; {ref!r} is none")


Preprocessing = Literal["crop", "pad"]
DeviceMap = Literal["single", "auto"]


class CaptionerSettings(Section):
    """The seed captioner m0."""

    ref: str = "miniworld:captioner"
    """Hub id, folder or URI of a LLaVA checkpoint; ``miniworld:captioner`` is the shipped tiny one."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; ``null``: the newest when the run starts (kept in ``models.commits``)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of generation and training."""
    preprocessing: Preprocessing = "crop"
    """``crop``: the Hugging Face processor's centre crop; ``pad``: to a square with the mean colour, as the
    original LLaVA. The same in generation, training, evaluation and serving."""
    device_map: Annotated[DeviceMap, Placement()] = "single"
    """``single``: a replica's model is on one GPU; ``auto``: its layers are laid out over all the GPUs that
    ``generate.resources.gpus`` reserves, for a model larger than one.
    Training shards a model over its workers instead (``train.zero_stage: 3``)."""

    @model_validator(mode="after")
    def _check(self) -> CaptionerSettings:
        _check_revision(self.ref, self.revision)
        return self

    @property
    def versioned_ref(self) -> str:
        """What ``jsfree.models.loading`` loads: ``ref``, or ``ref@revision``."""
        return f"{self.ref}@{self.revision}" if self.revision else self.ref


class ClipSettings(Section):
    """The CLIP model that verifies sentences."""

    ref: str = "miniworld:clip"
    """open_clip name (with ``pretrained``), ``hf-hub:`` id, folder or URI."""
    pretrained: str | None = None
    """open_clip weight tag of a built-in name (``openai`` for ViT-L-14-336)."""
    revision: str | None = None
    """Branch, tag or commit, as of the captioner."""

    @model_validator(mode="after")
    def _check(self) -> ClipSettings:
        _check_revision(self.ref, self.revision)
        return self

    @property
    def versioned_ref(self) -> str:
        """What ``jsfree.models.loading`` loads: ``ref``, or ``ref@revision``."""
        return f"{self.ref}@{self.revision}" if self.revision else self.ref


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


class Contrast(Section):
    """A contrastive decoding baseline of the literature, in place of Eq. 3."""

    kind: Literal["vcd", "m3id"]
    """``vcd``: Visual Contrastive Decoding (arXiv 2311.16922); ``m3id``: arXiv 2403.14003."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """``vcd``: how strongly the second path is subtracted."""
    beta: Annotated[float, Field(gt=0, le=1)] = 0.1
    """``vcd``: tokens less probable than this share of the most probable one are left out."""
    noise_step: Annotated[int, Field(ge=0, le=999)] | None = 500
    """``vcd``: how far the second path's image is noised, of 1,000 diffusion steps; ``null``: no image there."""
    decay: Annotated[float, Field(ge=0)] = 0.02
    """``m3id``: lambda, by how much the correction grows a token."""
    gate: Annotated[float, Field(gt=0, le=1)] = 0.3
    """``m3id``: no correction where the most probable token has at least this probability."""


class Decoding(Section):
    """How a caption is decoded from the next-token distribution."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Divides the logits of each path before mixing; 0 takes the most probable token of the mixture."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of each path's distribution, applied before mixing; 1 keeps all tokens."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Most probable tokens that are kept, before ``top_p``; 0 keeps all."""
    max_new_tokens: Positive = 96
    """A caption that has not ended by then is cut (finish ``length``)."""
    stop: tuple[str, ...] = ()
    """Texts that end a caption; it ends before the first of them."""

    @field_validator("stop")
    @classmethod
    def _stops_say_something(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty text would end every caption at once")
        return stop


class Mode(Decoding):
    """A way to decode captions for evaluation."""

    contrast: Contrast | None = None
    """``null``: with the image alone; else with a baseline's contrast of two paths."""


MixingName = Literal["probability", "logit"]
Compiling = Literal["none", "inductor", "cuda_graphs"]


class Generate(Section):
    """Stage 1: two captions an image by dual-path decoding (Eq. 3)."""

    ratios: Ratios = Ratios()
    decoding: Decoding = Decoding()
    mixing: MixingName = "probability"
    """``probability``: Eq. 3; ``logit``: the geometric mixture, for comparison."""
    slots: Annotated[Positive, Placement()] = 64
    """Captions decoded together by a replica; fewer where ``kv_cache_gib`` does not hold them."""
    kv_cache_gib: Annotated[Annotated[float, Field(gt=0)] | None, Placement()] = None
    """Memory of a replica for keys and values; ``null``: nine tenths of what a GPU has left beside the model, half of
    what is available on a CPU. Replicas that share a GPU (``gpus`` below 1) want a number."""
    compile: Annotated[Compiling, Placement()] = "none"
    """How a decoding step is run: as it is; compiled by torch (takes a C++ compiler on CPUs, minutes at the first
    step); or recorded once and replayed by the GPU, which spares it waiting for Python."""
    resources: Annotated[Resources, Placement()] = Resources()


class Score(Section):
    """Stage 2: CLIP similarity of every sentence with the image."""

    with_generation: Annotated[bool, Placement()] = False
    """Score captions, of pairs and of evaluation, in the pass that makes them: each image is decoded once, and CLIP is
    on the captioner's GPU, which must have room for both. Same scores; ``resources`` are then only for captions that
    were made without scores."""
    resources: Annotated[Resources, Placement()] = Resources()


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


class Validation(Section):
    """Pairs that training does not see, and what their loss decides."""

    pairs: Annotated[int, Field(ge=0)] = 0
    """Selected pairs that are held out, drawn by the seed; a multiple of the training workers. 0: none."""
    every: Positive = 20
    """Optimizer steps between two looks at them; there is one after the last step too."""
    patience: Positive | None = None
    """Looks without a lower loss after which training stops; ``null``: it never stops early."""
    publish: Literal["last", "best"] = "last"
    """The weights that are published: after the last step, or those of the lowest loss, written whenever it falls."""


class Lora(Section):
    """Low-rank adapters beside frozen weights (arXiv 2106.09685), merged into the published model."""

    rank: Positive = 128
    """Width of the factors."""
    alpha: Positive = 256
    """The adapters' share is scaled by alpha / rank."""
    targets: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        *("linear_1", "linear_2"),
    )
    """Names of the linear layers that get adapters: by default all of the language model and of the projector. The
    vision tower gets none."""


class Train(Section):
    """Stage 4: DPO against the frozen model of the round's start (Eq. 1-2)."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Weight of the implicit reward. The paper writes none (1); 0.1 is what published LLaVA runs use."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """``sigmoid``: Eq. 1-2. ``ipo``: the squared distance of the margin, a token, from 1 / (2 beta)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """``sigmoid``: share of the pairs that is taken for inverted."""
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
    trained_layers: Annotated[int, Field(ge=0)] | None = None
    """Layers of the language model that are trained, counted from the last, with the projector; the rest, embeddings
    and head included, is frozen. 0: the projector alone. ``null``: projector and language model whole, as in the
    paper. The vision tower is always frozen. For GPUs that cannot hold the whole optimizer state."""
    lora: Lora | None = None
    """Train low-rank adapters instead of the weights themselves; ``null``: the weights."""
    zero_stage: Literal[1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in the nodes' memory instead of the GPUs': the optimizer's state, or the weights too (ZeRO-3)."""
    gradient_checkpointing: bool = False
    attention: Annotated[Literal["sdpa", "flex"], Placement()] = "sdpa"
    """torch's kernel: ``sdpa`` with a mask of all positions, or ``flex``, which skips blocks that no position sees and
    is compiled at the first step (GPUs)."""
    cache_vision_features: Annotated[bool, Placement()] = False
    """Keep what the frozen vision tower makes of each image on disk (1.2 MB an image for LLaVA-1.5), so that it sees
    each once."""
    validation: Validation = Validation()
    chosen_alarm: Annotated[Annotated[float, Field(gt=0)] | None, Placement()] = 0.5
    """A warning is given when the chosen captions have lost so much log-probability a token."""
    checkpoint_every: Annotated[Positive, Placement()] = 50
    """Optimizer steps between checkpoints; not after the last."""
    keep: Annotated[Positive, Placement()] = 1
    """Checkpoints that are kept; while one is written there is one more."""
    max_failures: Annotated[int, Field(ge=0), Placement()] = 2
    """Lost workers that Ray Train replaces before the stage fails."""
    resources: Annotated[Resources, Placement()] = Resources()

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.resources.min_replicas is not None:
            raise ValueError("'resources.min_replicas' is not for training: the shards of its state fix the workers")
        if self.resources.gpus not in (0, 1):
            raise ValueError(
                f"a training worker takes one whole GPU, not {self.resources.gpus:g}; set 'resources.gpus: 1' and use"
                " more 'replicas' with 'zero_stage: 3' for a larger model"
            )
        if self.pairs_per_step % self.resources.replicas:
            raise ValueError(
                f"'pairs_per_step' ({self.pairs_per_step}) must be a multiple of the"
                f" {self.resources.replicas} training workers"
            )
        if self.attention == "flex" and not self.resources.gpus:
            raise ValueError("'attention: flex' computes no gradients on CPUs; set it to sdpa, or 'resources.gpus: 1'")
        if self.validation.pairs % self.resources.replicas:
            raise ValueError(
                f"'validation.pairs' ({self.validation.pairs}) must be a multiple of the"
                f" {self.resources.replicas} training workers"
            )
        if not self.validation.pairs and (self.validation.patience is not None or self.validation.publish == "best"):
            raise ValueError("'validation.patience' and 'validation.publish: best' need 'validation.pairs'")
        if self.lora is not None and self.trained_layers is not None:
            raise ValueError("'lora' and 'trained_layers' both say what is trained; set one of them to null")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(
                f"'offload: all' needs 'zero_stage: 3', not {self.zero_stage}: other stages keep all weights"
            )
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("'label_smoothing' belongs to 'loss: sigmoid', not to 'ipo'")
        share = self.pairs_per_step // self.resources.replicas
        if share % min(self.pairs_per_worker, share):
            raise ValueError(
                f"'pairs_per_worker' ({self.pairs_per_worker}) must divide the {share} pairs a worker has a step"
            )
        return self


class EvaluationSource(Source):
    """Images for evaluation; the defaults are another split than that of training.

    Without a ``path`` of its own, a source of the same kind reads where ``source`` does, from the other end.
    """

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
    modes: dict[str, Mode] = {"greedy": Mode(temperature=0), "sampled": Mode(temperature=1)}
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


class ServedModel(Resources):
    """Where the replicas of a served model run."""

    replicas: Positive = 1
    """Replicas of the model; requests are shared out among them."""

    @model_validator(mode="after")
    def _check_serving(self) -> ServedModel:
        if self.min_replicas is not None:
            raise ValueError("'min_replicas' is not for serving: set 'replicas', the number that always runs")
        return self


class Serve(Section):
    """The HTTP server of ``jsfree serve``; never part of a fingerprint."""

    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication: another one than loopback is open to whoever reaches it."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    before: ServedModel = ServedModel()
    """Replicas of m0."""
    after: ServedModel = ServedModel()
    """Replicas of the run's last model."""
    slots: Positive = 16
    """Captions that a replica decodes together; fewer where ``kv_cache_gib`` does not hold them."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of a replica for keys and values, as in ``generate``."""
    max_waiting: Annotated[int, Field(ge=0)] = 64
    """Captions that may wait for a replica's slots; a request that would add to them is refused (429)."""
    max_requests: Positive = 128
    """Requests under way at once; the next is refused (429) before its body is read."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 120
    """A request that is not answered by then is refused (408), and its slots are freed."""
    stall_s: Annotated[float, Field(gt=0)] = 120
    """A replica whose decoding has not advanced for so long is unhealthy, and replaced."""
    max_new_tokens: Positive = 512
    """Longest caption that a request may ask for, and what it gets if it names no length."""
    max_choices: Positive = 8
    """Captions that one request may ask for (``n``)."""
    max_prompt_chars: Positive = 4000
    """Longest text beside the image."""
    max_image_bytes: Positive = 10_000_000
    """Largest image file; checked before its base64 is decoded. The limit of a request's body follows from it."""
    max_pixels: Positive = 20_000_000
    """An image of more pixels is refused; checked before its pixels are decoded."""
    min_side: Positive = 8
    """An image with a shorter side is refused."""

    @property
    def max_body_bytes(self) -> int:
        """Bytes of a request's body: the largest image in base64 (folded or escaped, a tenth longer) and the rest.

        The rest is the longest text, escaped, and 64 KiB for all other fields.
        """
        return (self.max_image_bytes + 2) // 3 * 4 * 11 // 10 + 6 * self.max_prompt_chars + 65536


class Ray(Section):
    """The Ray cluster; never part of a fingerprint."""

    address: str | None = None
    """``null`` starts a local cluster for this run; ``auto`` joins the one on this machine or of this job."""
    num_cpus: Positive | None = None
    """Logical CPUs of a local cluster; default: what the stages ask for, at least 4."""


class ModelFiles(Section):
    """How models come to a node; never part of a fingerprint."""

    cache: str | None = None
    """Folder, on every node, for models that are fetched. ``null``: the one that the environment's ``JSFREE_CACHE``
    names; without it ``~/.cache/jsfree``, and Hugging Face's own cache for hub models."""
    offline: bool = False
    """Ask no hub: its models must be in the cache. ``HF_HUB_OFFLINE=1`` does the same."""
    commits: dict[str, str] = {}
    """Commit that the run takes of each hub model, filled in when it starts: all nodes have the same, to the end."""


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
    imported: Imported | None = None
    """Pairs from elsewhere, for one round; ``null``: pairs are generated from ``source``."""
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
    def _evaluation_reads_where_training_does(cls, settings: Any) -> Any:
        """Fill in ``evaluate.source`` what it leaves out, where it is of the same kind as ``source``."""
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
            raise ValueError("the text is empty")
        return text

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.rounds > 1 and self.source.count is None:
            raise ValueError("several rounds need 'source.count': how many fresh images each takes")
        return self

    @model_validator(mode="after")
    def _check_imported(self) -> RunConfig:
        if self.imported is not None and self.rounds > 1:
            raise ValueError(
                f"'imported' pairs are of one round, but 'rounds' is {self.rounds}; set 'rounds: 1', and start"
                " another run from the model of this one"
            )
        if self.imported is not None and self.score.with_generation:
            raise ValueError("'score.with_generation' has no generation to go with 'imported' pairs; set it to false")
        return self

    @model_validator(mode="after")
    def _check_device_map(self) -> RunConfig:
        gpus = self.generate.resources.gpus
        if self.captioner.device_map == "auto" and gpus <= 1:
            raise ValueError(
                f"'captioner.device_map: auto' lays a model out over several GPUs, but 'generate.resources.gpus' is"
                f" {gpus:g}; set it to 2 or more, or use 'device_map: single'"
            )
        if self.captioner.device_map == "single" and gpus > 1:
            raise ValueError(
                f"'generate.resources.gpus' is {gpus:g}, but 'captioner.device_map: single' uses one GPU;"
                " set 'gpus: 1', or 'device_map: auto' for a model larger than a GPU"
            )
        if self.score.resources.gpus > 1:
            raise ValueError(
                f"'score.resources.gpus' is {self.score.resources.gpus:g}, but CLIP uses one GPU or a fraction of one"
            )
        return self

    def fingerprint(self, *paths: str) -> str:
        """Hash of the settings at the dotted ``paths`` that decide a result."""
        settings = deciding_settings(self)
        chosen = {path: _at(settings, path) for path in paths}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def own_fingerprint(self) -> str:
        """Hash of all settings that decide a result, wherever the run is stored."""
        return self.fingerprint(*(set(deciding_settings(self)) - {"run"}))

    def to_yaml(self) -> str:
        """The resolved configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=math.inf)


def _section(settings: Any, key: str) -> dict[str, Any]:
    """The section ``key`` of settings not yet checked; empty where there is none."""
    section = settings.get(key) if isinstance(settings, dict) else None
    return section if isinstance(section, dict) else {}


def _at(settings: Any, path: str) -> Any:
    for part in path.split("."):
        settings = settings[part]
    return settings


def deciding_settings(value: Any) -> Any:
    """A section as plain values, without settings marked ``Placement`` and those ``AddedLater`` that are unchanged."""
    if isinstance(value, Section):
        fields = type(value).model_fields
        return {name: deciding_settings(each) for name, each in value if _decides(fields[name], each)}
    if isinstance(value, dict):
        return {key: deciding_settings(each) for key, each in value.items()}
    return [deciding_settings(each) for each in value] if isinstance(value, list | tuple) else value


def _decides(field: FieldInfo, value: Any) -> bool:
    marks = {type(mark) for mark in field.metadata}
    return Placement not in marks and not (AddedLater in marks and value == field.default)
