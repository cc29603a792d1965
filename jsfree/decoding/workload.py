"""What an engine decodes, and the memory layout that it needs for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from jsfree.config import Contrast, Generate
from jsfree.decoding.cache import CacheLayout, round_up
from jsfree.decoding.memory import GIB, KvSize
from jsfree.decoding.mixing import MIXINGS, Mixing, Probability, contrastive_mixing
from jsfree.decoding.requests import Request
from jsfree.errors import DeviceError

CHOICES_PER_REQUEST = 4
"""Captions of a served request that share the prefill of its image."""


@dataclass(frozen=True)
class Requirement:
    """Most tokens that captions take."""

    image_prefix: int
    """Image and prompt."""
    text_prefix: int
    """The prompt without the image."""
    caption: int
    """The caption itself."""

    def covers(self, other: Requirement) -> bool:
        """Whether memory laid out for this is large enough for ``other``."""
        return (
            self.image_prefix >= other.image_prefix
            and self.text_prefix >= other.text_prefix
            and self.caption >= other.caption
        )

    def union(self, other: Requirement) -> Requirement:
        """The smallest requirement that covers both."""
        return Requirement(
            max(self.image_prefix, other.image_prefix),
            max(self.text_prefix, other.text_prefix),
            max(self.caption, other.caption),
        )


@dataclass(frozen=True)
class Layout:
    """Memory for a number of captions."""

    slots: int
    second_rows: int
    """Rows of the second path."""
    images: int
    """Images whose prefill is held, one prefix a view."""
    requirement: Requirement
    cache: CacheLayout
    bytes: int
    """Keys and values of all layers."""


@dataclass(frozen=True)
class Workload:
    """The captions that an engine decodes together.

    ``for_pairs``, ``for_captions`` and ``for_serving`` are the workloads of the project.
    """

    slots: int
    """Most captions decoded together."""
    dual_path_share: float = 1.0
    """Share of the slots that may use the second path at a time."""
    captions_per_image: int = 2
    """Captions of an image that share its prefill."""
    images_per_slot: float = 0.75
    """Images whose prefill is held, as a share of the slots. A caption that outlives its sibling holds an image alone,
    so this must be above 1 / ``captions_per_image``; 1 always suffices."""
    prompts: int | None = None
    """Prompts without image that second paths follow at a time; a caption with one more waits. None: any number, which
    takes more memory."""
    mixing: Mixing = field(default_factory=Probability)
    """How the two paths are combined."""
    views: int = 1
    """Most views of an image that a caption's conditional path may see."""

    def __post_init__(self) -> None:
        if self.views > 1 and not self.mixing.allows_views:
            raise ValueError(f"{type(self.mixing).__name__} combines one view of the image, not {self.views}")

    @classmethod
    def for_pairs(cls, settings: Generate) -> Workload:
        """The captions of pairs, with one prompt for all images (Algorithm 1, lines 3-8), or as ``generate.loser``."""
        if settings.loser in ("noised_image", "bad_prompt"):  # at h = 0, after a prefix of its own
            return cls.for_captions(settings.slots, views=settings.decoding.views.count)
        if settings.loser == "continuation":  # decoded after all other captions of its image, without the image
            ordinary = cls.for_pairs(settings.model_copy(update={"loser": "ratio"}))
            return replace(ordinary, dual_path_share=1.0, captions_per_image=1 + settings.samples, images_per_slot=1.0)
        captions = 2 + settings.samples
        dual_path = 1 if settings.ratios.winner == "zero" else 2
        return cls(
            settings.slots,
            dual_path_share=dual_path / captions,
            captions_per_image=captions,
            images_per_slot=1.5 / captions,
            prompts=1,
            mixing=MIXINGS[settings.mixing],
            views=settings.decoding.views.count,
        )

    @classmethod
    def for_captions(cls, slots: int, contrast: Contrast | None = None, views: int = 1) -> Workload:
        """One caption an image: by the conditional path alone, or by a contrastive baseline."""
        share, mixing = (1.0, contrastive_mixing(contrast)) if contrast else (0.0, Probability())
        return cls(slots, share, captions_per_image=1, images_per_slot=1.0, prompts=1, mixing=mixing, views=views)

    @classmethod
    def for_serving(cls, slots: int, views: int = 1, *, dual_path: bool = False) -> Workload:
        """Any image with any prompt: by the conditional path alone, or by Eq. 3 at any ratio."""
        share = 1.0 if dual_path else 0.0
        return cls(slots, share, captions_per_image=CHOICES_PER_REQUEST, images_per_slot=1.0, views=views)

    @property
    def second_image(self) -> bool:
        """Whether the second path sees a (noised) image instead of none."""
        return self.mixing.noise_step is not None

    def uses_conditional(self, request: Request) -> bool:
        """Whether a caption needs the conditional path: for its tokens, or for their log-probabilities."""
        return request.with_logps or self.mixing.uses_conditional(request.ratio)

    def uses_image(self, request: Request) -> bool:
        """Whether a caption needs its image prefilled."""
        return self.uses_conditional(request) or self.second_image

    def layout(self, size: KvSize, requirement: Requirement, budget: float) -> Layout:
        """The layout with the most slots, at most ``slots``, within ``budget`` bytes.

        Raises:
            DeviceError: not even one caption fits.
        """
        for slots in range(self.slots, 0, -1):
            layout = replace(self, slots=slots)._layout(size, requirement)
            if layout.bytes <= budget:
                return layout
        raise DeviceError(
            f"the keys and values of one caption take {layout.bytes / GIB:.3g} GiB ({requirement.image_prefix} tokens"
            f" of image and prompt, up to {requirement.caption} of the caption), but there are {budget / GIB:.3g} GiB"
            " for them",
            "set 'kv_cache_gib' higher, 'max_new_tokens' lower, or take a GPU with more memory",
        )

    def _layout(self, size: KvSize, requirement: Requirement) -> Layout:
        """The layout of exactly ``slots`` captions."""
        images = min(self.slots, int(self.slots * self.images_per_slot) + 1)
        view_rows, second_rows = self.slots * self.views, math.ceil(self.slots * self.dual_path_share)
        prompts = second_rows if self.prompts is None else min(second_rows, self.prompts)
        cache = CacheLayout(
            rows=view_rows + second_rows,
            image_rows=view_rows + second_rows if self.second_image else view_rows,
            own_tokens=round_up(requirement.caption),
            image_prefixes=images * (self.views + (1 if self.second_image else 0)),
            readers=self.captions_per_image,
            image_tokens=requirement.image_prefix,
            text_prefixes=0 if self.second_image else prompts,
            text_tokens=requirement.text_prefix,
            group=size.group,
        )
        return Layout(self.slots, second_rows, images, requirement, cache, cache.tokens * size.token_bytes)
