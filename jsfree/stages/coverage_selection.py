"""Selects preference pairs and composed captions from the candidates of a round (``select.strategy: coverage``).

The scored shards are read several times, a part at a time: to count words, to fit the verifier (in the first round),
to score the pairs that each image gives, and to write those that are selected. Memory is independent of captions and
images; per claim and per image, a few numbers are kept.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, starmap
from statistics import fmean
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jsfree import schemas
from jsfree.config import Select
from jsfree.decoding.sampling import noise_key
from jsfree.errors import StageError
from jsfree.run.folder import Folder, shard_name
from jsfree.run.sorting import RowSorter
from jsfree.run.streaming import scan, scan_shard
from jsfree.schemas import ScoredCandidate, ScoredCaption
from jsfree.stages.candidate_sentences import Sentence, ending, split_candidate
from jsfree.stages.claims import Claims, EmbedTexts, WordStatistics
from jsfree.stages.composition import FormedPair, VerifiedImage, form_pair
from jsfree.stages.pair_selection import PairChoice, PairColumns, choose_splits, count_pairs, required_columns
from jsfree.stages.shard_selection import BUCKET_BYTES, write_selected
from jsfree.stages.verification import Verifier, fit_verifier, pool

COLUMNS = ("sample_id", "candidates")
PART_ROWS = 1024
"""Pairs whose ids are converted to Arrow together."""
VERIFIER = "verifier.json"
"""File of the first round's ``selected`` folder that later rounds verify with."""


@dataclass(frozen=True)
class Verification:
    """What sentences are verified with: the claims that they make, and the log-odds of evidence."""

    claims: Claims
    verifier: Verifier

    def write(self, folder: Folder) -> None:
        """Write ``verifier.json``."""
        folder.write_json(VERIFIER, {**self.verifier.as_json(), "claims": self.claims.as_json()})

    @classmethod
    def read(cls, folder: Folder) -> Verification:
        """Read ``verifier.json``.

        Raises:
            StorageError: it cannot be read.
            StageError: an earlier version wrote it.
        """
        stored = folder.read_json(VERIFIER)
        if "claims" not in stored:
            raise StageError(
                f"{folder.uri}/{VERIFIER}: an earlier version wrote this verifier, whose claims are tokens, not words",
                "continue with that version, or start a new run",
            )
        return cls(Claims.from_json(stored["claims"]), Verifier.from_json(stored))


@dataclass(frozen=True)
class CandidateTable:
    """The candidates of a round, read from the scored shards.

    Attributes:
        scored: folder of the scored pairs.
        likelihoods: folder of ``schemas.LIKELIHOODS``, whose log-probabilities replace the stored ones; None: those are
            kept.
    """

    scored: Folder
    likelihoods: Folder | None = None

    def images(self) -> Iterator[tuple[str, list[ScoredCandidate] | None]]:
        """Sample id and candidates of each row, in order; None if their log-probabilities are missing."""
        for number in self.scored.shards():
            logps = self._logps(number)
            for table in scan_shard(self.scored, number, schemas.SCORED_WITH_CANDIDATES, COLUMNS):
                for row in table.to_pylist():
                    own = None if logps is None else logps.get(row["sample_id"], ())
                    yield row["sample_id"], None if own == () else _with_logps(row["candidates"], own)

    def sentences(self) -> Iterator[Iterator[Sentence]]:
        """The sentences of each image."""
        for _, candidates in self.images():
            yield (sentence for candidate in candidates or () for sentence in split_candidate(candidate))

    def _logps(self, number: int) -> dict[str, list[list[float]]] | None:
        if self.likelihoods is None:
            return None
        if number not in self.likelihoods.shards():
            return {}
        rows = self.likelihoods.read_table(shard_name(number), schemas.LIKELIHOODS).to_pylist()
        return {row["sample_id"]: row["logps"] for row in rows}


def fit(candidates: CandidateTable, settings: Select, embed: EmbedTexts | None = None) -> Verification:
    """Find the claims of a round's sentences and fit a verifier to their evidence.

    Args:
        candidates: the candidates of the round.
        settings: settings of the selection.
        embed: maps words to embeddings, by which synonyms are found; None: every word is a claim of its own.

    Raises:
        StageError: there are too few claims, or the signals do not separate true and false ones.
        StorageError: a shard cannot be read.
    """
    statistics = WordStatistics.count(sentence for image in candidates.sentences() for sentence in image)
    claims = Claims.of(statistics, candidates.sentences(), embed)
    is_uncertain = statistics.is_uncertain(claims)
    evidence = array("d")
    for image in candidates.sentences():
        for claim, signals in pool(image, claims).items():
            if is_uncertain[claim]:
                evidence.extend(signals)
    return Verification(claims, fit_verifier(np.array(evidence).reshape(-1, 2), settings.coverage.signals))


@dataclass(frozen=True)
class CoverageSelection:
    """Forms the pairs of a round and selects some of them."""

    candidates: CandidateTable
    verification: Verification
    settings: Select
    seed: int
    round_number: int

    def write(self, selected: Folder, shard_rows: int) -> dict[str, Any]:
        """Write the selected pairs as rows of ``schemas.COMPOSED``, by rank, and the verifier; return facts.

        Pairs of two candidates are sorted by their gap and cut into splits, of which some are kept, as with strategy
        ``gap``. Pairs whose rejected caption is an edit of the chosen one follow; their split is 0.

        Returns:
            The facts of ``PairChoice`` about stored pairs and splits, and ``edited`` and ``open_ended`` (kept pairs
            whose composed caption has no end token), ``unformed`` (images without a pair), ``without_likelihood``, and
            the ``verifier``.

        Raises:
            StageError: no pair remains.
            StorageError: a shard, or the temporary folder, cannot be read or written.
        """
        facts = self._pair_facts()
        choice = self._choose()
        facts |= choice.facts | {"verifier": self.verification.verifier.as_json()}
        if not len(choice.ranks):
            raise StageError(
                f"no pair is left to train on: of {facts['pairs']} images, {facts['unformed']} give no pair of captions"
                " (all are truncated, or no sentence is verified)"
                f" and {facts['without_likelihood']} have no log-probabilities under m0",
                "use more images, raise 'generate.decoding.max_new_tokens', or set 'select.keep_truncated'",
            )
        self.verification.write(selected)
        write_selected(selected, self._sorted_rows(choice, facts["pairs"]), shard_rows)
        return facts

    def form(self, sample_id: str, candidates: list[ScoredCandidate] | None) -> FormedPair | None:
        """The pair of an image; a function of the arguments, the settings and the seed."""
        if candidates is None:
            return None
        rng = np.random.Generator(np.random.Philox(key=noise_key(self.seed, self.round_number, sample_id, "edits")))
        image = VerifiedImage.of(candidates, self.verification.claims, self.verification.verifier)
        coverage = self.settings.coverage
        return form_pair(
            image,
            edited=coverage.edited,
            repeated=coverage.repeated,
            keep_truncated=self.settings.keep_truncated,
            rng=rng,
        )

    def _pair_facts(self) -> dict[str, Any]:
        tables = scan(self.candidates.scored, schemas.SCORED, required_columns(self.settings))
        columns = PairColumns.concatenate(PairColumns.from_table(table, self.settings) for table in tables)
        return count_pairs(columns, self.settings)

    def _choose(self) -> PairChoice:
        """Form all pairs, keeping only their gaps, and choose among them."""
        ids: list[pa.Array] = []
        gaps, edited, open_ended = array("d"), array("b"), array("b")
        missing = 0
        images = self.candidates.images()
        while part := list(islice(images, PART_ROWS)):
            ids.append(pa.array([sample_id for sample_id, _ in part], pa.large_string()))
            missing += sum(candidates is None for _, candidates in part)
            for pair in starmap(self.form, part):
                gaps.append(math.nan if pair is None else pair.gap)
                edited.append(pair is not None and pair.is_edited)
                open_ended.append(pair is not None and not pair.ends)
        gap_N, edited_N = np.array(gaps), np.array(edited, bool)
        sample_ids = pa.chunked_array(ids, pa.large_string()).combine_chunks()
        unedited = np.flatnonzero(~np.isnan(gap_N) & ~edited_N)
        choice = choose_splits(unedited, gap_N, sample_ids, self.settings, self.seed)
        further = np.flatnonzero(edited_N)
        indices = np.concatenate([choice.indices, further])
        facts = {
            **choice.facts,
            "kept": len(indices),
            "edited": len(further),
            "open_ended": int(np.array(open_ended, bool)[indices].sum()),
            "unformed": int(np.isnan(gap_N).sum()) - missing,
            "without_likelihood": missing,
        }
        return PairChoice(
            indices=indices,
            ranks=np.concatenate([choice.ranks, len(unedited) + np.arange(len(further))]),
            splits=np.concatenate([choice.splits, np.zeros(len(further), np.int64)]),
            gaps=np.concatenate([choice.gaps, gap_N[further]]),
            facts=facts,
        )

    def _sorted_rows(self, choice: PairChoice, pairs: int) -> Iterator[pa.Table]:
        """The selected rows in the order of ``choice``."""
        positions = np.full(pairs, -1, np.int64)
        positions[choice.indices] = np.arange(len(choice.indices))
        scored, start = self.candidates.scored, 0
        images = self.candidates.images()
        with closing(RowSorter(BUCKET_BYTES)) as sorter:
            for table in scan(scored, schemas.SCORED):
                end = start + table.num_rows
                part = list(islice(images, table.num_rows))
                kept = np.flatnonzero(positions[start:end] >= 0)
                if len(kept):
                    places = positions[start:end][kept]
                    rows = [self._row(*part[index]) for index in kept]
                    ranks, splits = choice.ranks[places], choice.splits[places]
                    sorter.add(_add_columns(table.take(pa.array(kept)), rows, ranks, splits), places)
                start = end
            yield from sorter.sorted()

    def _row(self, sample_id: str, candidates: list[ScoredCandidate] | None) -> dict[str, Any]:
        """The columns that selection adds to a scored pair, without rank and split."""
        pair = self.form(sample_id, candidates)
        assert pair is not None
        assert candidates is not None
        by_role = {each["role"]: each for each in candidates}
        chosen, rejected = by_role[pair.chosen], by_role[pair.provenance["rejected"]]
        return {
            "gap": pair.gap,
            "chosen": _scored_caption(chosen),
            "rejected": _edited_caption(chosen, pair.rejected) if pair.is_edited else _scored_caption(rejected),
            "target": pair.target,
            "provenance": pair.provenance,
        }


def _with_logps(candidates: list[ScoredCandidate], logps: Sequence[list[float]] | None) -> list[ScoredCandidate]:
    """Replace the log-probabilities of candidates, unless ``logps`` is None."""
    if logps is None:
        return candidates
    return [cast(ScoredCandidate, {**each, "logps": own}) for each, own in zip(candidates, logps, strict=True)]


def _scored_caption(candidate: ScoredCandidate) -> ScoredCaption:
    scores = [sentence["score"] for sentence in candidate["sentences"]]
    return ScoredCaption(
        ratio=candidate["ratio"],
        text=candidate["text"],
        token_ids=candidate["token_ids"],
        finish=candidate["finish"],
        sentences=candidate["sentences"],
        score=fmean(scores) if scores else math.nan,
    )


def _edited_caption(chosen: ScoredCandidate, caption: Sequence[Sentence]) -> ScoredCaption:
    """The rejected caption that consists of ``caption``; it ends as the chosen one does."""
    tokens = [token for sentence in caption for token in sentence.token_ids]
    return ScoredCaption(
        ratio=chosen["ratio"],
        text=" ".join(sentence.text for sentence in caption),
        token_ids=[*tokens, *ending(chosen)],
        finish=chosen["finish"],
        sentences=[{"text": sentence.text, "score": sentence.cosine} for sentence in caption],
        score=fmean(sentence.cosine for sentence in caption),
    )


def _add_columns(
    scored: pa.Table, rows: list[dict[str, Any]], ranks: NDArray[np.int64], splits: NDArray[np.int64]
) -> pa.Table:
    """Rows of ``schemas.COMPOSED`` from scored pairs and the columns that selection adds."""
    columns = {name: scored[name] for name in schemas.SCORED.names}
    for field in schemas.COMPOSED:
        if field.name in rows[0]:
            columns[field.name] = pa.array([row[field.name] for row in rows], field.type)
    return pa.table({**columns, "rank": ranks, "split": pa.array(splits, pa.int32())}).select(schemas.COMPOSED.names)
