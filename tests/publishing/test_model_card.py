"""Model cards depend only on the run and contain no local paths."""

import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from jsfree.config import ModelFiles
from jsfree.models.contents import CAPTIONER, require_folder, write_checksums
from jsfree.publishing.base_model import base_of, front_matter
from jsfree.publishing.model_card import card, write_card
from tests.support import example_run
from tests.support.local_hub import LocalHub, Repo


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return example_run.build(tmp_path_factory.mktemp("runs") / "mine", rounds=2)


def rows(text: str, first: str) -> list[list[str]]:
    """Cells of the table rows that begin with ``first``."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if cells[0].startswith(first)]


def test_the_card_shows_the_metrics(run):
    text = card(run, 2)
    metrics = run.round(2).read_json("metrics.json")
    for mode, cells in zip(("greedy", "sampled"), rows(text, "Response hallucination"), strict=True):
        for when, cell in zip(("before", "after"), cells[1:], strict=False):
            known = metrics[when][mode]["response_hallucination"]
            value, low, high = (f"{100 * known[key]:.1f}" for key in ("value", "low", "high"))
            assert cell == f"{value} ({low} to {high})"
    assert "40 MiniWorld scenes of the test split" in text
    assert "hallucination itself has not been measured" not in text.lower()


def test_the_card_lists_the_data_of_every_round(run):
    text = card(run, 2)
    for number in (1, 2):
        facts = run.manifest(number, "selected").facts
        assert rows(text, f"{number}")[0] == [f"{number}", "120", "120", f"{facts['inverted']}", f"{facts['kept']}"]
    assert not rows(card(run, 1), "2")
    assert f"fingerprint `{run.config.own_fingerprint}`, seed 0, round 2" in text
    assert "jsfree 0.1.0, torch 2.13.0, transformers 5.19.1" in text


def test_the_hub_reads_metadata_and_results(run):
    read = ModelCard(card(run, 1)).data
    assert (read.library_name, read.pipeline_tag, read.license) == ("transformers", "image-text-to-text", "apache-2.0")
    assert "base_model" not in read.to_dict()
    assert "arxiv:2411.17760" in read.tags
    metrics = run.round(1).read_json("metrics.json")["after"]
    results = {(result.metric_type, result.metric_name): result for result in read.eval_results}
    assert len(results) == sum(map(len, metrics.values()))
    recall = results["recall", "Recall (%), sampled"]
    assert recall.metric_value == round(100 * metrics["sampled"]["recall"]["value"], 1)
    assert recall.dataset_name == "40 MiniWorld scenes of the test split"


def test_without_ground_truth_the_card_claims_no_hallucination_rate(tmp_path):
    unknown = example_run.build(
        tmp_path / "private-name", truth=False, source={"kind": "folder", "path": "/home/me/photos", "count": 120}
    )
    text = card(unknown, 1)
    assert "Hallucination itself has not been measured" in text
    score = unknown.round(1).read_json("label_free.json")["after"]["greedy"]["clip_score"]["value"]
    assert rows(text, "CLIP score")[0][2].startswith(f"{100 * score:.2f} (")
    assert "120 images per round of `photos` (folder)" in text
    for place in ("/home/me", "private-name", str(tmp_path)):
        assert place not in text


def test_equal_runs_have_equal_cards(run, tmp_path):
    other = example_run.build(tmp_path / "elsewhere", rounds=2)
    assert card(other, 1).encode() == card(run, 1).encode()
    unevaluated = example_run.build(tmp_path / "half")
    for name in ("metrics.json", "label_free.json"):
        unevaluated.round(1).remove(name)
    assert "has not been evaluated yet" in card(unevaluated, 1)


def test_the_card_is_not_part_of_the_model_checksums(run, tmp_path):
    model = tmp_path / "round-1" / "model"
    model.mkdir(parents=True)
    for name, content in {
        "config.json": '{"model_type": "llava"}',
        "processor_config.json": "{}",
        "tokenizer.json": "{}",
        "model.safetensors": "weights",
    }.items():
        (model / name).write_text(content)
    write_checksums(model)
    known = (model / "checksums.json").read_bytes()
    moved = type(run)(run.config.model_copy(update={"run": str(tmp_path)}))
    write_card(moved, 1)
    assert (model / "README.md").read_text() == card(moved, 1)
    require_folder(CAPTIONER, "here", model)
    write_checksums(model)
    assert (model / "checksums.json").read_bytes() == known


# The licence


def test_the_licence_of_a_local_base_model(tmp_path, run):
    base = tmp_path / "my-llava"
    base.mkdir()
    (base / "README.md").write_text(
        "---\nlicense: other\nlicense_name: llama2\nlicense_link: https://x.org\n---\n# Hi\n"
    )
    found = base_of(str(base), ModelFiles())
    assert (found.name, found.hub) == ("my-llava", None)
    assert found.licence == {"license": "other", "license_name": "llama2", "license_link": "https://x.org"}
    settings = run.config.captioner.model_copy(update={"ref": str(base)})
    told = card(type(run)(run.config.model_copy(update={"captioner": settings})), 1)
    assert ModelCard(told).data.license == "other"
    assert "It is under the licence of its base, llama2." in told
    assert str(tmp_path / "my-llava") not in told
    (base / "README.md").unlink()
    untold = card(type(run)(run.config.model_copy(update={"captioner": settings})), 1)
    assert ModelCard(untold).data.license is None
    assert "The licence of my-llava applies to this model too. It is not known here" in untold


ASK = """
import sys
from jsfree.publishing.base_model import base_of
from jsfree.config import ModelFiles
commit, *refs = sys.argv[1:]
for ref in refs:
    found = base_of(ref, ModelFiles(commits={"owner/llava": commit}))
    print(found.name, found.hub, dict(found.licence))
"""


def test_the_licence_of_a_base_model_on_the_hub(tmp_path):
    with LocalHub({"owner/llava": Repo({"README.md": b"---\nlicense: llama2\n---\n"}), "owner/bare": Repo({})}) as hub:
        commit = hub.repos["owner/llava"].commit
        ask = [sys.executable, "-c", ASK, commit, "owner/llava", "owner/bare", "owner/absent"]
        told, untold = (
            subprocess.run(
                ask, capture_output=True, text=True, check=True, env=hub.environment(tmp_path, **more)
            ).stdout
            for more in ({}, {"HF_HUB_OFFLINE": "1"})
        )
    assert told.splitlines() == [
        f"owner/llava owner/llava@{commit} {{'license': 'llama2'}}",
        "owner/bare owner/bare {}",
        "owner/absent owner/absent {}",
    ]
    assert untold.splitlines()[0] == f"owner/llava owner/llava@{commit} {{}}"


NO_FRONT_MATTER = (
    "",
    "# A card",
    "---\nlicense: [\n---\n",
    "---\n- a\n---\n",
    "---\nlicense: x\n",
    "a\n---\nb: c\n---",
)


@pytest.mark.parametrize("text", NO_FRONT_MATTER)
def test_text_without_front_matter_has_no_metadata(text):
    assert front_matter(text) == {}


def test_the_card_of_a_model_trained_on_imported_pairs(tmp_path):
    imported = {"format": "povid", "path": "/home/me/povid_preference.json"}
    text = card(example_run.build(tmp_path / "run", imported=imported), 1)
    assert "imported pairs of captions\n(povid: `povid_preference.json`)" in text
    assert "trained to answer the pairs' questions" in text
    for claim in ("/home/me", "generated itself", "model's own", "hallucination ratios", "Describe image"):
        assert claim not in text.partition("## How to use it")[0] + text.partition("## Data")[2]


def test_the_card_names_the_judge_of_the_pairs(run, tmp_path):
    judged = example_run.build(tmp_path / "judged", errors=False, score={"judge": "captioner"}, source={"count": 40})
    text = card(judged, 1)
    assert "The base model itself scored every sentence" in text
    assert "pairs inverted by m0: swap" in text
    assert "CLIP" not in text
    assert "CLIP (`miniworld:clip`) scored every sentence" in card(run, 1)
    assert "pairs inverted by CLIP: swap" in card(run, 1)
