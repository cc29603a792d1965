"""Selecting by coverage from shards: which captions are chosen, composed and kept, in which order."""

import random

import pyarrow as pa
import pytest

from jsfree import schemas
from jsfree.config import Select
from jsfree.errors import StageError
from jsfree.run.folder import Folder, shard_name
from jsfree.stages import coverage_selection
from jsfree.stages.coverage_selection import CandidateTable, CoverageSelection, Verification, fit

NOUNS = ("cup", "bus", "cow", "dog", "fish", "tree", "car", "bed", "hat", "pot")
TOKENS = {word: number for number, word in enumerate(("END", "A", "THE", *NOUNS), 2)}
SETTINGS = Select(strategy="coverage", first=1, last=10)


def candidate(rng: random.Random, role: str, said: list[str], truth: set[str]) -> dict:
    """A caption of one sentence a noun; true sentences have higher cosines and log-probabilities."""
    parts, tokens, logps, ends, scored, text = [], [], [], [], [], ""
    for noun in said:
        is_true = noun in truth
        article = rng.choice(["A", "The"])
        parts.append(f"{article} {noun}.")
        text = " ".join(parts)
        tokens += [TOKENS[article.upper()], TOKENS[noun]]
        logps += [rng.gauss(-0.3 if is_true else -1.5, 0.2) for _ in range(2)]
        ends += [len(text) - len(noun) - 2, len(text)]
        scored.append({"text": parts[-1], "score": rng.gauss(0.5 if is_true else 0.2, 0.08)})
    return {
        "role": role, "ratio": 0.5 if role == "high" else 0.0, "text": text, "token_ids": [*tokens, TOKENS["END"]],
        "finish": "stop", "logps": [*logps, -0.1], "unconditional_logps": [], "ends": [*ends, len(text)],
        "sentences": scored,
    }  # fmt: skip


def truth_of(number: int) -> set[str]:
    return set(random.Random(number).sample(NOUNS, 4))


def row(number: int) -> dict:
    """An image with four true nouns; captions omit some and add absent ones, the one with high ratio more of them."""
    rng, truth = random.Random(1000 + number), truth_of(number)
    absent = [noun for noun in NOUNS if noun not in truth]
    candidates = []
    for role in ("low", "high", "sample-1", "sample-2"):
        said = rng.sample(sorted(truth), 2 if role == "high" else 3) + rng.sample(absent, 3 if role == "high" else 1)
        candidates.append(candidate(rng, role, said, truth))
    by_role = {each["role"]: each for each in candidates}
    scored = {
        role: {
            **{key: by_role[role][key] for key in ("ratio", "text", "token_ids", "finish", "sentences")},
            "score": sum(part["score"] for part in by_role[role]["sentences"]) / len(by_role[role]["sentences"]),
        }
        for role in ("low", "high")
    }
    difference = scored["low"]["score"] - scored["high"]["score"]
    image = {"id": f"{number:03}", "uri": None, "bytes": b"x" * 500, "sha256": None}
    return {
        "sample_id": f"{number:03}@1", "image": image, "prompt": "Describe.", **scored, "seed": 0,
        "inverted": difference < 0, "gap": abs(difference), "candidates": candidates,
    }  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [row(number) for number in range(120)]


@pytest.fixture
def scored(rows, tmp_path) -> Folder:
    folder = Folder(str(tmp_path / "scored"))
    for number, (start, end) in enumerate([(0, 1), (1, 50), (50, 50), (50, 120)]):
        table = pa.Table.from_pylist(rows[start:end], schema=schemas.SCORED_WITH_CANDIDATES)
        folder.write_table(shard_name(number), table)
    return folder


def select(scored: Folder, target: Folder, settings: Select = SETTINGS, likelihoods: Folder | None = None, **changes):
    candidates = CandidateTable(scored, likelihoods)
    verification = changes.pop("verification", None) or fit(candidates, settings)
    facts = CoverageSelection(candidates, verification, settings, changes.pop("seed", 3), 1).write(target, 30)
    return target.read_shards(schemas.COMPOSED).to_pylist(), facts


def nouns(text: str) -> set[str]:
    return {word.strip(".") for word in text.split()} & set(NOUNS)


def test_composed_captions_name_what_any_candidate_truly_names(scored, rows, tmp_path):
    selected, _ = select(scored, Folder(str(tmp_path / "selected")))
    seen = {each["sample_id"]: set().union(*(nouns(one["text"]) for one in each["candidates"])) for each in rows}
    wrong = 0
    for pair in selected:
        truth = truth_of(int(pair["sample_id"][:3]))
        wrong += nouns(pair["target"]["text"]) != seen[pair["sample_id"]] & truth
    assert len(selected) > 100
    assert wrong < 0.1 * len(selected)


def test_pairs_are_ranked_by_gap_and_edits_follow(scored, tmp_path):
    selected, facts = select(scored, Folder(str(tmp_path / "selected")))
    unedited = [pair for pair in selected if pair["provenance"]["edit"] == "none"]
    edited = selected[len(unedited) :]
    assert [pair["rank"] for pair in selected] == list(range(len(selected)))
    assert [pair["gap"] for pair in unedited] == sorted(pair["gap"] for pair in unedited)
    assert unedited[0]["gap"] > 0
    assert all(pair["provenance"]["rejected"] == "high" for pair in unedited)
    assert {pair["split"] for pair in unedited} == set(range(1, 11))
    assert {pair["split"] for pair in edited} == {0}
    assert 0.2 < len(edited) / len(selected) < 0.55
    assert (facts["edited"], facts["kept"], facts["pairs"]) == (len(edited), len(selected), 120)
    for pair in edited:
        is_repeated = pair["provenance"]["edit"] == "repeated"
        assert pair["provenance"]["sentence"] in pair["rejected" if is_repeated else "chosen"]["text"]
        assert pair["chosen"]["token_ids"][-1:] == pair["rejected"]["token_ids"][-1:] == [TOKENS["END"]]
        longer = len(pair["rejected"]["sentences"]) - len(pair["chosen"]["sentences"])
        assert longer == (1 if is_repeated else -1)


def test_splits_that_are_not_kept_have_no_pairs(scored, tmp_path):
    every, _ = select(scored, Folder(str(tmp_path / "every")))
    kept, facts = select(scored, Folder(str(tmp_path / "kept")), Select(strategy="coverage", first=2, last=10))
    dropped = {pair["sample_id"] for pair in every if pair["split"] == 1}
    assert {pair["sample_id"] for pair in kept} == {pair["sample_id"] for pair in every} - dropped
    assert facts["splits"][0]["pairs"] == len(dropped)


def test_the_stored_pair_of_stage_one_is_complete(scored, rows, tmp_path):
    selected, facts = select(scored, Folder(str(tmp_path / "selected")))
    by_id = {each["sample_id"]: each for each in rows}
    for pair in selected:
        assert all(
            pair[name] == by_id[pair["sample_id"]][name] for name in ("low", "high", "image", "inverted", "seed")
        )
    assert facts["inverted"] == sum(each["inverted"] for each in rows)


def test_the_result_depends_on_neither_buffers_nor_shard_boundaries(scored, rows, tmp_path, monkeypatch):
    expected = select(scored, Folder(str(tmp_path / "a")))
    monkeypatch.setattr(coverage_selection, "BUCKET_BYTES", 20_000)
    monkeypatch.setattr(coverage_selection, "PART_ROWS", 7)
    whole = Folder(str(tmp_path / "whole"))
    whole.write_table(shard_name(0), pa.Table.from_pylist(rows, schema=schemas.SCORED_WITH_CANDIDATES))
    assert select(whole, Folder(str(tmp_path / "b"))) == expected


def test_another_seed_edits_other_pairs(scored, tmp_path):
    first, _ = select(scored, Folder(str(tmp_path / "a")))
    other, _ = select(scored, Folder(str(tmp_path / "b")), seed=4)
    edited = [{pair["sample_id"] for pair in pairs if pair["split"] == 0} for pairs in (first, other)]
    assert edited[0] != edited[1]


def test_a_later_round_verifies_with_the_stored_verifier_and_the_likelihood_of_m0(scored, rows, tmp_path):
    target = Folder(str(tmp_path / "first"))
    select(scored, target)
    verification = Verification.read(target)
    assert verification == fit(CandidateTable(scored), SETTINGS)
    likelihoods = Folder(str(tmp_path / "likelihoods"))
    for number, (start, end) in enumerate([(0, 1), (1, 50), (50, 50), (50, 119)]):  # the last image has none
        found = [
            {
                "sample_id": rows[index]["sample_id"],
                "logps": [[-9.0 * (index % 2)] * len(each["logps"]) for each in rows[index]["candidates"]],
            }
            for index in range(start, end)
        ]
        likelihoods.write_table(shard_name(number), pa.Table.from_pylist(found, schema=schemas.LIKELIHOODS))
    selected, facts = select(
        scored, Folder(str(tmp_path / "second")), likelihoods=likelihoods, verification=verification
    )
    assert facts["without_likelihood"] == 1
    # m0 is certain of the sentences of every second image; of the others, no sentence is likely enough.
    assert {int(pair["sample_id"][:3]) % 2 for pair in selected} == {0}
    assert facts["unformed"] >= 59


def test_candidates_without_an_ending_give_no_pair(rows, tmp_path):
    folder = Folder(str(tmp_path / "scored"))
    cut = [{**each, "candidates": [{**one, "finish": "length"} for one in each["candidates"]]} for each in rows]
    folder.write_table(shard_name(0), pa.Table.from_pylist(cut, schema=schemas.SCORED_WITH_CANDIDATES))
    with pytest.raises(StageError, match=r"of 120 images, 120 give no pair.*select\.keep_truncated"):
        select(folder, Folder(str(tmp_path / "selected")))
    kept, _ = select(folder, Folder(str(tmp_path / "kept")), SETTINGS.model_copy(update={"keep_truncated": True}))
    assert len(kept) > 100
