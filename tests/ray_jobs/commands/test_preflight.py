"""Preflight of a good configuration and of many broken ones."""

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from jsfree import config as configuration
from jsfree.checks.findings import Finding, Verdict
from jsfree.checks.settings import check_settings
from jsfree.errors import ConfigError
from jsfree.judge.settings import JudgeSettings
from jsfree.miniworld import world
from jsfree.models.references import WEIGHTS
from jsfree.run.stages import STAGES
from jsfree.sizing.workload import workload_of
from ray_jobs.cli import app
from ray_jobs.commands.preflight import plan, preflight, with_gpus
from ray_jobs.commands.preflight_table import show
from tests.support import ROOT

CONFIGS = ROOT / "configs"
GOOD = {"source": {"count": 300}, "evaluate": {"source": {"count": 50}}}


def checked(tmp_path, settings, **overrides):
    settings = {"run": str(tmp_path / "run"), **GOOD, **settings, **overrides}
    return preflight(configuration.build(settings, where="test"))


def of(result, verdict) -> list[Finding]:
    return [finding for finding in result.findings if finding.verdict is verdict]


def test_a_good_configuration_passes_and_leaves_no_files(tmp_path):
    result = checked(tmp_path, {})
    assert result.works, of(result, Verdict.FAILS)
    areas = {finding.area for finding in result.findings}
    assert areas == {"libraries", "storage", "data", "settings", "models", "cluster", "memory"}
    assert [time.stage for time in result.times] == ["generate", "score", "train", "evaluate"]
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def copy_of(tmp_path_factory):
    """Copies a model's folder, by name, for a test to break."""

    def copied(name: str) -> Path:
        folder = tmp_path_factory.mktemp("model") / name
        shutil.copytree(WEIGHTS / name, folder)
        return folder

    return copied


def edited(folder: Path, file: str, **changes) -> dict:
    """Settings of a captioner after changes to one of its JSON files."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    _without_checksums(folder)
    return {"captioner": {"ref": str(folder)}}


def _without_checksums(folder: Path) -> None:
    (folder / "checksums.json").unlink(missing_ok=True)


def half_a_file(folder: Path, _) -> dict:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    _without_checksums(folder)
    return {"captioner": {"ref": str(folder)}}


def without_a_tensor(folder: Path, _) -> dict:
    weights = load_file(folder / "model.safetensors")
    del weights["multi_modal_projector.linear_2.bias"]
    save_file(weights, folder / "model.safetensors")
    _without_checksums(folder)
    return {"captioner": {"ref": str(folder)}}


def without_a_template(folder: Path, _) -> dict:
    (folder / "chat_template.jinja").unlink()
    _without_checksums(folder)
    return {"captioner": {"ref": str(folder)}}


def small_vocabulary(folder: Path, _) -> dict:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    return edited(folder, "config.json", text_config={**text, "vocab_size": 20})


def another_model(folder: Path, _) -> dict:
    return edited(folder, "config.json", model_type="mllama")


def clip_without_description(_, tmp_path) -> dict:
    folder = tmp_path / "clip"
    shutil.copytree(WEIGHTS / "clip", folder)
    (folder / "open_clip_config.json").write_text('{"model_cfg": {}}')
    return {"clip": {"ref": str(folder)}}


def damaged_images(_, tmp_path) -> dict:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        content = world.png_bytes(world.scene("unlabelled", number))
        (folder / f"{number}.png").write_bytes(content if number % 4 else content[:100])
    few_a_step = {"pairs_per_step": 4, "pairs_per_worker": 2}
    return {"source": {"kind": "folder", "path": str(folder), "count": 30}, "train": few_a_step}


def pairs_of_others(_, tmp_path) -> dict:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    rows = [
        {"prompt": "What?", "images": ["a.png"], "chosen": "A dog." if number % 4 else "", "rejected": "A cat."}
        for number in range(160)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"imported": {"format": "trl", "path": str(tmp_path / "pairs.jsonl")}}


def few_images(_, tmp_path) -> dict:
    folder = tmp_path / "few"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "one.png")
    return {"source": {"kind": "folder", "path": str(folder), "count": 300}}


def a_file_for_a_folder(_, tmp_path) -> dict:
    (tmp_path / "file").write_text("")
    return {"run": str(tmp_path / "file" / "run")}


def settings(**values):
    return lambda _, tmp_path: values


BROKEN = {
    "no source": (settings(source={"kind": "folder", "path": "/nowhere"}), "does not exist", "correct 'source.path'"),
    "too few images": (few_images, "has 1 images, but 300 are needed", "lower 'source.count'"),
    "damaged images": (damaged_images, "10 of 40 cannot be used", "max_failed_fraction"),
    "pairs of others": (pairs_of_others, "40 of 160 cannot be used (40 empty_chosen)", "max_failed_fraction"),
    "training scenes evaluated": (
        settings(evaluate={"source": {"split": "unlabelled", "count": 50}}),
        "both trained and evaluated on",
        "another split",
    ),
    "run in a file": (a_file_for_a_folder, "cannot be written", ""),
    "disk too small": (settings(source={"count": 10**9}), "GB free", "larger disk"),
    "no captioner": (settings(captioner={"ref": "/nowhere/llava"}), "there is no folder", ""),
    "half the weights": (half_a_file, "not a complete safetensors file", "copy it again"),
    "a tensor missing": (without_a_tensor, "first multi_modal_projector.linear_2.bias", "publish it again"),
    "no chat template": (without_a_template, "no chat template", "llava-hf"),
    "small vocabulary": (small_vocabulary, "the language model 20", "one checkpoint"),
    "another model": (another_model, "reads images by cross-attention", "supported family"),
    "CLIP not described": (clip_without_description, "does not describe a CLIP model", ""),
    "prompt too long": (
        settings(generate={"decoding": {"max_new_tokens": 600}}),
        "more than the model's 512",
        "generate.decoding.max_new_tokens to 483",
    ),
    "image token in the prompt": (settings(prompt="What is <image>?"), "contains the image token", "remove it"),
    "no step of training": (settings(source={"count": 60}), "fewer than the 32 of one step", "raise source.count"),
    "no GPU": (settings(generate={"resources": {"gpus": 1}}), "this machine has 0 GPUs", "ray.address"),
    "no cluster": (settings(ray={"address": "127.0.0.1:9"}), "no Ray cluster answers", "correct ray.address"),
    "graphs on a CPU": (settings(generate={"compile": "cuda_graphs"}), "cuda_graphs needs a GPU", "compile: none"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_configuration_is_one_failure_with_a_remedy(name, tmp_path, copy_of):
    make, cause, remedy = BROKEN[name]
    result = checked(tmp_path, make(copy_of("captioner"), tmp_path))
    found = of(result, Verdict.FAILS)
    assert len(found) == 1, found
    assert cause in found[0].found
    assert remedy in found[0].remedy
    assert found[0].remedy


def test_notes_do_not_stop_a_run(tmp_path, copy_of):
    right = edited(copy_of("captioner"), "tokenizer_config.json", padding_side="right")
    other_patches = edited(Path(right["captioner"]["ref"]), "processor_config.json", patch_size=8)
    odd = {"train": {"cache_vision_features": True, "epochs": 1}, "serve": {"host": "::"}}
    greedy = {"generate": {"decoding": {"temperature": 0}}}
    result = checked(tmp_path, {**other_patches, **odd, **greedy})
    assert result.works
    noted = {finding.name: finding.found for finding in of(result, Verdict.NOTE)}
    assert set(noted) >= {"padding side", "serve.host", "train.cache_vision_features", "generate.decoding.temperature"}
    assert "64 image tokens into the prompt, the vision tower gives 16" in noted["image tokens"]


def test_finished_stages_are_not_checked_again(tmp_path):
    settings = {"source": {"kind": "folder", "path": "/nowhere", "count": 300}}
    done = tmp_path / "run" / "round-1"
    for mark in [stage.mark for name, stage in STAGES.items() if name != "evaluate"]:
        (done / mark).parent.mkdir(parents=True, exist_ok=True)
        (done / mark).write_text("{}")
    assert checked(tmp_path, settings).works
    (done / STAGES["evaluate"].mark).write_text("{}")
    assert checked(tmp_path, {**settings, "captioner": {"ref": "/nowhere/llava"}}).works


def test_too_few_evaluation_images_are_a_failure(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    evaluation = {"source": {"kind": "folder", "path": str(tmp_path), "count": 5}}
    (finding,) = of(checked(tmp_path, {"evaluate": evaluation}), Verdict.FAILS)
    assert "has 1 images, but 'evaluate.source.count' is 5" in finding.found


def test_a_damaged_tokenizer_is_a_failure(tmp_path, copy_of):
    folder = copy_of("captioner")
    (folder / "tokenizer.json").write_text('{"model": 5}')
    _without_checksums(folder)
    (finding,) = of(checked(tmp_path, {"captioner": {"ref": str(folder)}}), Verdict.FAILS)
    assert "its configuration or processor cannot be read" in finding.found


def test_an_image_listed_twice_is_reported(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    rows = [{"id": number, "image": "a.png"} for number in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = {"kind": "llava_json", "path": str(tmp_path / "rows.json"), "count": 1}
    result = checked(tmp_path, {"source": source})
    assert "2 entries repeat the image" in next(each.found for each in result.findings if each.name == "source: ids")


def test_the_command_exits_with_1_and_names_an_unknown_key(tmp_path):
    done = CliRunner().invoke(app, ["preflight", "--json", "--set", "train.bta=1"])
    assert done.exit_code == 1
    (finding,) = json.loads(done.stdout)["findings"]
    assert "unknown key 'train.bta'" in finding["found"]
    assert "did you mean 'beta'?" in finding["remedy"]


def test_run_does_not_start_if_preflight_fails(tmp_path):
    run = tmp_path / "run"
    done = CliRunner().invoke(app, ["run", "--run", str(run), "--set", "captioner.ref=/nowhere/llava"])
    assert "there is no folder /nowhere/llava" in str(done.exception)
    assert not run.exists()


def test_a_bad_prompt_that_m0_cannot_answer_is_refused_with_one_that_it_can():
    loser = {"generate": {"loser": "bad_prompt"}}

    def findings(**settings) -> list[Finding]:
        built = configuration.build({**GOOD, **settings}, where="test")
        work = workload_of(built, 300)
        return [each for each in check_settings(built, work) if each.name == "generate.bad_prompt"]

    [finding] = findings(**loser)
    assert finding.verdict is Verdict.FAILS
    assert finding.remedy == "--set 'generate.bad_prompt=Imagine. Describe image in detail.'"
    [finding] = findings(**loser, max_failed_fraction=0.1)
    assert finding.verdict is Verdict.NOTE
    assert findings(generate={"loser": "bad_prompt", "bad_prompt": "Imagine. Describe image in detail."}) == []
    assert findings(**loser, captioner={"ref": "llava-hf/llava-1.5-7b-hf"}) == []
    assert findings() == []


def test_a_plan_suggests_a_setting_that_fits_a_smaller_gpu():
    config = with_gpus(configuration.load(CONFIGS / "llava-1.5-13b.yaml"), 8)
    fits = plan(config, "a100-80g")
    assert fits.works
    assert all(time.known.startswith("estimated") for time in fits.times)
    config = with_gpus(config, 4)
    small = plan(config, "a100-40g")
    (problem,) = of(small, Verdict.FAILS)
    assert problem.name == "train"
    changed = [word for word in problem.remedy.split() if "=" in word]
    better = configuration.with_overrides(config, [each.strip("'") for each in changed])
    assert plan(better, "a100-40g").works


def test_a_plan_tells_time_and_cost_of_benchmarks(tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: USD\nas_of: 2026-11-01\nmodels:\n  x: {input: 1, output: 2}\n", encoding="utf-8")
    config = with_gpus(configuration.load(CONFIGS / "llava-1.5-13b.yaml"), 8)
    result = plan(config, "a100-80g", JudgeSettings(model="x", prices=str(prices)))
    halbench, ic = result.benchmarks
    assert (halbench.answers, ic.answers) == (300 * 2, 150 * 2)  # m0 and m1
    assert (halbench.judge_requests, ic.judge_requests) == (600, 5 * 300)
    for each in (halbench, ic):
        assert each.judge_cost == pytest.approx((each.prompt_tokens + 2 * each.reply_tokens) / 1e6)
    # Beam search reads 26 GB of weights for every token of one answer, at 0.8 of 2 TB/s; the engine decodes many.
    assert 600 * 130 * 26e9 / (0.8 * 2.04e12) < halbench.seconds < 3600
    assert ic.seconds < halbench.seconds / 3
    table = Console(record=True, width=160, file=io.StringIO())
    show(result, table)
    text = table.export_text()
    assert "Object HalBench" in text
    assert "Judge, USD" in text
    assert plan(config, "a100-80g").benchmarks[0].judge_cost is None


def test_a_plan_needs_the_kind_of_gpu():
    config = configuration.load(CONFIGS / "llava-1.5-13b.yaml")
    with pytest.raises(ConfigError, match=r"does not name the kind of GPU; use --gpu: .*a100-80g"):
        plan(config, None)
    with pytest.raises(ConfigError, match="unknown GPU 'voodoo2'"):
        plan(config, "voodoo2")


def test_a_plan_needs_no_images(tmp_path):
    source = {"kind": "folder", "path": "/nowhere", "count": 1000}
    config = configuration.build({"source": source}, where="test")
    assert plan(config, None).works
