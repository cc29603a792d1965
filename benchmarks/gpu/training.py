"""DPO steps without DeepSpeed, on jsfree's batches, model and loss with torch's AdamW; and two plain forwards."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from jsfree.config import Train
from jsfree.dpo.batching import CHOSEN, PREFIX, REJECTED, PairBatch
from jsfree.dpo.loss import Lengths, PairLogps, preference_loss
from jsfree.dpo.policy import PairModel
from jsfree.schemas import Role

Logps = dict[Role, torch.Tensor]
Forward = Callable[[PairBatch], Logps]


def loss_of(logps: Logps, reference: Logps, batch: PairBatch, settings: Train) -> torch.Tensor:
    """The mean loss of a batch."""
    lengths, policy = Lengths.of(batch.lengths, logps["chosen"].device), PairLogps.of(logps)
    terms = preference_loss(
        policy,
        PairLogps.of(reference),
        lengths,
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
        kind=settings.loss,
    )
    return terms.loss.mean()


def train_step(
    forward: Forward, optimizer: torch.optim.Optimizer, batch: PairBatch, reference: Logps | None, settings: Train
) -> torch.Tensor:
    """Run one optimizer step on a batch and return its loss; without ``reference``, the policy is its own reference."""
    optimizer.zero_grad()
    logps = forward(batch)
    reference = reference or {role: each.detach() for role, each in logps.items()}
    loss = loss_of(logps, reference, batch, settings)
    loss.backward()  # type: ignore[no-untyped-call]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
    optimizer.step()
    return loss.detach()


def two_forwards(model: PairModel) -> Forward:
    """The common way: one forward pass for chosen and one for rejected captions, each with its own prefix."""

    def forward(batch: PairBatch) -> Logps:
        return {"chosen": _plain(model, batch, CHOSEN), "rejected": _plain(model, batch, REJECTED)}

    return forward


def _plain(model: PairModel, batch: PairBatch, segment: int) -> torch.Tensor:
    """Summed log-probabilities of one caption of each pair from the unmodified model, (B,)."""
    own_BL = (batch.segments_BL == PREFIX) | (batch.segments_BL == segment)
    rows = [ids[own] for ids, own in zip(batch.ids_BL, own_BL, strict=True)]
    prefixes = (batch.segments_BL == PREFIX).sum(-1).tolist()
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    seen_BT = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits_BTV = model.llava(input_ids=ids_BT, attention_mask=seen_BT, **batch.images, use_cache=False).logits
    sums = []
    for logits_TV, row, prefix in zip(logits_BTV, rows, prefixes, strict=True):
        predicting = logits_TV[prefix - 1 : len(row) - 1].float()
        sums.append(-F.cross_entropy(predicting, row[prefix:], reduction="sum"))
    return torch.stack(sums)
