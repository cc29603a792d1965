"""The report page is complete, self-contained, safe, and shows the run's figures."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from jsfree import config, schemas
from jsfree.evaluation.metrics import TRUTH
from jsfree.report.page import build_report, render
from jsfree.run.folder import shard_name
from jsfree.run.run import Run
from tests.support import example_run

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Parses a page and fails on tags that do not nest. Collects attributes, text and the texts of some tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.attributes, self.text, self.by_class = [], [], [], {}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class", "")))

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text.append(data)
        for _, kinds in self.open:
            for kind in kinds.split():
                self.by_class[kind] = self.by_class.get(kind, "") + data

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).replace("\u00a0", " ").split())


def assert_self_contained(html: str) -> None:
    for tag, name, value in Page(html).attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
    assert "<script" not in html.lower()
    assert "@import" not in html
    assert not [target for target in re.findall(r"url\(([^)]*)\)", html) if not target.startswith("#")]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return example_run.build(tmp_path_factory.mktemp("run") / "one")


@pytest.fixture(scope="module")
def html(run) -> str:
    path = build_report(run)
    assert path == f"{run.folder.uri}/report/index.html"
    return Path(path).read_text()


def test_the_page_is_one_small_file_without_network_requests(html):
    assert_self_contained(html)
    assert len(html.encode()) <= 5_000_000


def test_headline_and_table_show_the_measured_values(run, html):
    metrics = run.round(1).read_json("metrics.json")
    page = Page(html)
    before, after = (metrics[when]["greedy"]["response_hallucination"]["value"] for when in ("before", "after"))
    assert (
        f"After one round the captioner hallucinates in {100 * after:.1f} % of its greedy captions"
        f" instead of {100 * before:.1f} %." in page.words
    )
    for when in ("before", "after"):
        for mode in ("greedy", "sampled"):
            for metric in TRUTH:
                measured = metrics[when][mode][metric.name]
                cell = f"{metric.scale * measured['value']:.{metric.digits}f}"
                low, high = (f"{metric.scale * measured[end]:.{metric.digits}f}" for end in ("low", "high"))
                assert f"{cell}{low} to {high}" in page.words


def test_the_page_has_two_galleries_of_twelve_scenes(html):
    page = Page(html)
    pictures = [value for tag, name, value in page.attributes if tag == "img" and name == "src"]
    assert len(pictures) == 24
    assert all(value.startswith("data:image/jpeg;base64,") for value in pictures)
    assert all(value for tag, name, value in page.attributes if tag == "img" and name == "alt")


def test_only_absent_objects_are_marked(run, html):
    from jsfree.evaluation import miniworld as metrics
    from jsfree.miniworld import world

    scenes = re.findall(r'<li class="scene">(.*?)</li>', html.partition('id="captions"')[2], re.S)
    marked = 0
    for scene in scenes:
        scene_id = re.search(r"<code>(.*?)@", scene).group(1)
        present = {item.name for item in world.scene_from_id(scene_id).objects}
        nouns = re.findall(r'<span class="absent"><s>(.*?)</s><span class="label">absent</span>', scene)
        assert not present & set(nouns)
        marked += len(nouns)
        text = re.sub(r'<span class="label">.*?</span>|<[^>]*>', "", scene)
        assert len(metrics.hallucinated_mentions(world.scene_from_id(scene_id), text)) == len(nouns)
    assert len(scenes) == 12
    assert marked > 0


def test_selection_training_cost_and_failures_are_reported(run, html):
    page = Page(html)
    facts = run.manifest(1, "selected").facts
    assert f"in {100 * facts['inverted_share']:.1f} % of {facts['pairs']} pairs" in page.words
    assert page.by_class["splits"].count("✓ kept") == 4
    for title in ("Loss", "ln 2", "Implicit rewards", "Reward margin", "Gradient norm", "Accuracy"):
        assert title in page.words
    devices = [run.manifest(1, cost).device_seconds for cost in _stages(run)]
    share = run.manifest(1, "scored").device_seconds / sum(devices)
    assert f"{100 * share:.1f} % of all" in page.words
    assert "undecodable3image 17.jpg is damaged" in page.words
    assert "captions/m1-greedymissing1" in page.words
    assert "jsfree run configs/miniworld.yaml --run runs/miniworld" in page.words
    assert "0123456789abcdef" in page.words
    assert "learning_rate: 0.0002" in page.words


def _stages(run: Run) -> list[str]:
    found = ["samples", "pairs", "scored", "selected", "train"]
    return found + [f"{kind}/{name}" for kind in ("captions", "captions_scored") for name in run.stage(1, kind).names()]


def test_without_ground_truth_the_page_marks_low_clip_sentences_instead_of_absent_objects(tmp_path):
    html = render(example_run.build(tmp_path / "run", truth=False, errors=False))
    page = Page(html)
    assert_self_contained(html)
    assert "hallucination itself is not measured here" in page.words
    assert "low CLIP" in page.by_class["low"]
    assert "absent" not in page.by_class
    assert "None: every row of every stage succeeded." in page.words


def test_two_rounds_have_three_models_and_a_section_each(tmp_path):
    html = render(example_run.build(tmp_path / "run", rounds=2))
    page = Page(html)
    assert "After two rounds" in page.words
    assert "m0 (before)m1m2 (after)" in page.words
    assert {"round-1", "round-2"} <= {value for _, name, value in page.attributes if name == "id"}
    assert "After (m2, greedy)" in page.words
    assert page.words.count("m1, greedy") == 12  # the same scenes, by every model
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("train", "equal"), [({}, [True, True]), ({"reference": "seed"}, [True, False]), ({"sft_weight": 0.1}, [False] * 2)]
)
def test_the_note_on_the_initial_loss_depends_on_the_reference_of_the_round(tmp_path, train, equal):
    html = render(example_run.build(tmp_path / "run", rounds=2, train=train))
    first, second = (
        html.partition(f'<section id="round-{number}">')[2].partition("</section>")[0] for number in (1, 2)
    )
    assert ["Policy and reference are equal at the start" in text for text in (first, second)] == equal
    assert ("The reference is m0, the policy begins as m1" in second) == ("reference" in train)
    assert "The reference is m0" not in first


def test_the_allowed_share_of_failed_rows_is_the_configured_one(tmp_path):
    page = Page(render(example_run.build(tmp_path / "run", max_failed_fraction=0.25)))
    assert "A stage fails when more than 25.0 % of its rows do (max_failed_fraction)." in page.words
    assert "never stops" not in page.words


def test_data_from_every_source_is_escaped(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    run = example_run.build(tmp_path / "run", prompt=f"Describe {evil}")
    for stage, schema in (("scored", schemas.SCORED), ("captions_scored/m1-greedy", schemas.SCORED_CAPTIONS)):
        folder = run.stage(1, stage)
        for shard in folder.shards():
            rows = folder.read_table(shard_name(shard), schema).to_pylist()
            for row in rows:
                for caption in (row["low"], row["high"]) if "low" in row else (row,):
                    caption["text"] += evil
                    caption["sentences"][0]["text"] += evil
            folder.write_table(shard_name(shard), pa.Table.from_pylist(rows, schema=schema))
    run.folder.write_json("run.json", {"command": evil, "versions": {evil: evil}, "hardware": evil})
    error = {"sample_id": evil, "stage": "pairs", "kind": evil, "message": evil}
    (run.round(1) / "errors" / "pairs").write_table(shard_name(0), pa.Table.from_pylist([error], schema=schemas.ERRORS))
    html = render(run)
    assert_self_contained(html)
    assert evil in Page(html).words
    assert not [name for _, name, _ in Page(html).attributes if name.startswith("on")]


def test_an_empty_run_has_a_page(tmp_path):
    run = Run.open(config.build({"run": str(tmp_path / "run")}, where="test"))
    assert "Nothing has been evaluated yet." in Page(render(run)).words


def test_an_unfinished_second_round_is_shown_with_its_available_parts(tmp_path):
    run = example_run.build(tmp_path / "run", rounds=2)
    for name in ("selected", "train", "captions", "captions_scored"):
        run.stage(2, name).remove()
    for name in ("metrics.json", "label_free.json"):
        Path(run.round(2).path, name).unlink()
    page = Page(render(run))
    assert "After one round" in page.words
    assert "Pairs are of round 1." in page.words
    assert "There is no training log for this round." in page.words


def test_a_run_without_training_log_or_run_json_has_a_page(tmp_path):
    run = example_run.build(tmp_path / "run")
    Path(run.folder.path, "run.json").unlink()
    Path(run.stage(1, "train").path, "steps.json").unlink()
    assert "There is no training log for this round." in Page(render(run)).words


def test_images_by_uri_are_scaled_down_and_unreadable_ones_get_a_placeholder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = range(256)
    Image.frombytes("RGB", (1600, 900), bytes(rng) * (1600 * 900 * 3 // 256)).save(pictures / "good.jpg")
    (pictures / "bad.jpg").write_bytes(b"no picture")
    run = example_run.build(tmp_path / "run", truth=False)
    source = {"kind": "folder", "path": str(pictures)}
    moved = Run(config.build({"run": run.config.run, "source": source, "evaluate": {"source": source}}, where="test"))
    folder = moved.stage(1, "scored")
    for shard in folder.shards():
        rows = folder.read_table(shard_name(shard), schemas.SCORED).to_pylist()
        for index, row in enumerate(rows):
            name = "good.jpg" if index % 2 else ("bad.jpg" if index % 4 else "missing.jpg")
            row["image"] = {"id": name, "uri": str(pictures / name), "bytes": None, "sha256": None}
        folder.write_table(shard_name(shard), pa.Table.from_pylist(rows, schema=schemas.SCORED))
    html = render(moved)
    assert_self_contained(html)
    assert "image cannot be read" in Page(html).words
    sizes = {_size(value) for tag, name, value in Page(html).attributes if tag == "img" and name == "src"}
    assert (256, 144) in sizes
    assert all(max(size) <= 256 for size in sizes)


def _size(uri: str) -> tuple[int, int]:
    import base64

    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        return picture.size


def test_the_page_names_the_judge_of_the_pairs(tmp_path, html):
    run = example_run.build(tmp_path / "run", errors=False, score={"judge": "captioner"}, source={"count": 40})
    judged = render(run)
    words = Page(judged).words
    assert "m0 disagreed with the order of the hallucination ratios" in words
    assert "Verification by m0 (stage “scored”)" in words
    assert "score gap of the pair (probability of yes by m0 × 100)" in words
    assert "Sentences are shaded by their score (probability of yes by m0)" in words
    assert "mean probability of yes by m0 " in words
    own = Page(html).words
    assert "CLIP disagreed with the order of the hallucination ratios" in own
    assert "score gap of the pair (CLIP cosine × 100)" in own
    for section in ("round-1", "pairs"):
        assert "CLIP" not in judged.partition(f'<section id="{section}">')[2].partition("</section>")[0]
