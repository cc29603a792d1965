"""The report of a run with verified sentences: composed captions, its own gaps, the NLL, and curves by round."""

import re
from collections import Counter

import pytest

from jsfree import schemas
from jsfree.evaluation import miniworld as metrics
from jsfree.evaluation.metrics import TRUTH
from jsfree.miniworld import world
from jsfree.report import composed, coverage
from jsfree.report.page import render
from jsfree.run.run import Run
from tests.report.test_page import Page, assert_self_contained
from tests.support import example_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("coverage") / "run"
    return example_run.build(folder, rounds=2, errors=False, **example_run.COVERAGE)


@pytest.fixture(scope="module")
def html(run) -> str:
    return render(run)


@pytest.fixture(scope="module")
def rows(run) -> dict[str, dict]:
    """The selected pairs of the last round, by sample id."""
    table = run.stage(2, "selected").read_shards(schemas.COMPOSED)
    return {row["sample_id"]: row for row in table.to_pylist()}


def section(html: str, name: str) -> str:
    return html.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def scenes_of(html: str) -> dict[str, str]:
    scenes = re.findall(r'<li class="scene">(.*?)</li>', section(html, "composed"), re.S)
    return {re.search(r"<code>(.*?)</code>", scene).group(1): scene for scene in scenes}


def text_of(markup: str) -> str:
    """The words of a caption, without labels and numbers."""
    plain = re.sub(r'<span class="(label|value|spoken)">.*?</span>|<[^>]*>|\u2060', "", markup, flags=re.S)
    return " ".join(plain.replace("&#8288;", "").split())


def sides_of(scene: str) -> list[str]:
    return re.findall(r'<div class="side">(.*?)</div>', scene, re.S)


def test_every_sentence_of_a_composed_caption_shows_what_was_done_to_it(html, rows):
    shown = scenes_of(html)
    assert len(shown) == composed.SCENES
    seen = Counter()
    for sample_id, scene in shown.items():
        edits = rows[sample_id]["target"]["edits"]
        marked = re.findall(r'<(\w+) class="edit (\w+)"[^>]*>(.*?)</\1>(?=[^<]*(?:<\w+ class="edit|</p>))', scene, re.S)
        assert [action for _, action, _ in marked] == [edit["action"] for edit in edits]
        for (tag, action, body), edit in zip(marked, edits, strict=True):
            assert tag == {"removed": "del", "repeated": "del", "added": "ins", "kept": "span"}[action]
            assert text_of(re.search(r'<span class="words">(.*)', body, re.S).group(1)) == edit["text"]
            assert f"{composed.SIGNS[action]}<" in body  # not by colour alone
            value = re.search(r'<span class="value">(.*?)</span>', body).group(1)
            assert value == f"{edit['logit']:+.1f} {edit['role'].replace('-', ' ')}".replace("-", "−")
            seen[action] += 1
    assert seen["kept"] > 0
    assert seen["removed"] > 0


def test_the_scene_shows_the_pair_that_was_formed(html, rows):
    outcomes = Counter()
    for sample_id, scene in scenes_of(html).items():
        row, pair = rows[sample_id], sides_of(scene)[1]
        edit = row["provenance"]["edit"]
        _, chosen, rejected = re.split(r'<p class="pair-of">', pair)
        assert text_of(chosen).endswith(row["chosen"]["text"])
        if edit == "none":
            assert text_of(rejected).endswith(row["rejected"]["text"])
            assert f"{row['provenance']['rejected']} (h = {row['high']['ratio']:.2f})" in rejected
        else:
            assert f"the chosen caption with the sentence “{row['provenance']['sentence']}” {edit}" in rejected
        assert f"gap of coverage: {row['gap']:.2f}" in pair
        outcomes[edit] += 1
    assert outcomes == {"none": 2, "omitted": 2, "repeated": 2}


def test_absent_objects_are_marked_in_composed_captions_and_pairs(html, rows):
    marked = 0
    for sample_id, scene in scenes_of(html).items():
        row, true_scene = rows[sample_id], world.scene_from_id(sample_id.rpartition("@")[0])
        texts = [edit["text"] for edit in row["target"]["edits"]] + [row["chosen"]["text"]]
        texts += [row["rejected"]["text"]] if row["provenance"]["edit"] == "none" else []
        expected = [each for text in texts for each in metrics.hallucinated_mentions(true_scene, text)]
        found = re.findall(r'<span class="absent"><u>(.*?)</u><span class="label">absent</span></span>', scene)
        assert len(found) == len(expected)
        marked += len(found)
    assert marked > 0


def test_the_legend_counts_the_sentences_of_all_composed_captions(html, rows):
    counts = Counter(edit["action"] for row in rows.values() for edit in row["target"]["edits"])
    words = Page(html).words
    for action, meaning in composed.MEANINGS.items():
        share = 100 * counts[action] / counts.total()
        assert f"{meaning}{counts[action]} sentences, {share:.1f} %" in words


def test_gaps_are_shown_in_units_of_coverage(run, html):
    shown = Page(section(html, "round-1"))
    splits = run.manifest(1, "selected").facts["splits"]
    table = shown.by_class["splits"]
    for split in splits:
        assert f"{split['low_gap']:.2f}{split['high_gap']:.2f}{split['mean_gap']:.2f}" in table
    assert "A gap is the coverage of the chosen caption minus that of the rejected one." in shown.words
    assert "CLIP cosine × 100" not in shown.words
    assert "score gap of the pair" not in html  # no histogram of another gap


def test_the_round_names_verifier_and_numbers_of_pairs(run, html):
    first, second = (Page(section(html, f"round-{number}")).words for number in (1, 2))
    facts = run.manifest(1, "selected").facts
    weights = facts["verifier"]["weights"]
    assert f"{weights['cosine']:.2f} × CLIP cosine + {weights['probability']:.2f} × probability −" in first
    assert f"Of 120 images, {facts['kept']} are trained on; in {facts['edited']} of these" in first
    assert f"Images without a pair: {facts['unformed']}; without log-probabilities under m0: 0." in first
    assert "fitted without labels to the claims of this round" in first
    assert "fitted without labels in round 1 and are unchanged" in second
    assert f"ratios in {100 * facts['inverted_share']:.1f} % of the 120 images" in first


def test_pairs_are_not_judged_by_ranges_of_another_gap(html):
    shown = section(html, "pairs")
    assert "gap too" not in shown
    assert "badge" not in shown  # the captions shown are not those that were chosen and rejected
    assert "Provisional" not in shown
    assert "order of the ratios is inverted" in shown


def test_every_metric_has_a_curve_over_all_models(run, html):
    shown = section(html, "metrics")
    panels = re.findall(r'<svg class="panel".*?</svg>', shown, re.S)
    titles = [re.search(r'aria-label="(.*?) by model', panel).group(1) for panel in panels]
    assert [f"{metric.label}{', %' if metric.unit else ''}" for metric in TRUTH] == titles[: len(TRUTH)]
    measured = run.round(2).read_json("metrics.json")["after"]["sampled"]["recall"]["value"]
    recall = panels[[metric.name for metric in TRUTH].index("recall")]
    assert re.search(rf"sampled: m0 [\d.]+, m1 [\d.]+, m2 {100 * measured:.3g}", recall)
    assert recall.count('class="spread') == 6  # an interval per model and mode


def test_the_page_is_well_formed_and_self_contained(html):
    assert_self_contained(html)
    ids = [value for _, name, value in Page(html).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_nll_of_composed_captions_has_a_curve(html):
    shown = section(html, "round-1")
    assert "NLL per token, composed captions over training steps: NLL from 0.5 to 0.264." in shown
    assert "Reward margin" in shown
    assert "The NLL per token of the composed caption, times 4, is added to the loss shown." in Page(shown).words


def test_a_training_by_nll_alone_has_no_panels_of_preferences(tmp_path):
    train = {"objective": "nll", "sft_weight": 2.0}
    run = example_run.build(tmp_path / "run", errors=False, **{**example_run.COVERAGE, "train": train})
    shown = section(render(run), "round-1")
    titles = re.findall(r'class="panel-title"[^>]*>(.*?)<', shown)
    assert titles == ["Loss", "NLL per token, composed captions", "Gradient norm"]
    assert "ln 2" not in shown
    assert "not logged" not in shown
    assert "The loss is 2 × the NLL per token of the composed caption; there is no reference model." in shown


@pytest.mark.parametrize(
    ("verifier", "formula"),
    [
        ({}, ""),
        (
            {"weights": {"cosine": 2.0, "probability": 3.5}, "bias": -1.25},
            "2.00 × CLIP cosine + 3.50 × probability − 1.25",
        ),
        ({"weights": {"cosine": 2.0, "probability": 0.0}, "bias": 0.5}, "2.00 × CLIP cosine + 0.50"),
    ],
)
def test_the_formula_of_a_verifier_has_its_used_signals(verifier, formula):
    assert coverage.verifier_formula(verifier) == formula
