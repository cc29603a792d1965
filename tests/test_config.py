"""Configuration: what a user mistypes is named, with the nearest valid key."""

from pathlib import Path

import pytest

from jsfree import config
from jsfree.config import RunConfig
from jsfree.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("generat.batch_size=1", "unknown key 'generat'; did you mean 'generate'?"),
        ("generate.ratios.meen=0.4", "unknown key 'generate.ratios.meen'; did you mean 'mean'?"),
        ("evaluate.modes.greedy.temprature=0", "did you mean 'temperature'?"),
        ("zzz=1", "valid keys: run, seed"),
        (
            "train.beta=high",
            "train.beta: Input should be a valid number, unable to parse string as a number (got 'high')",
        ),
        ("train.beta=-1", "train.beta: Input should be greater than 0 (got -1)"),
        ("generate.ratios.high=1.5", "generate.ratios.high: Input should be less than or equal to 1 (got 1.5)"),
        ("select.first=9", "need first <= last <= splits, got 9"),
        ("source.kind=folder", "source: kind 'folder' needs 'path'"),
        ("train.pairs_per_step=33", "must be a multiple of the 2 training workers"),
        ("train.resources={gpus: 0.5}", "a training worker takes one whole GPU, not 0.5"),
        ("train.resources={gpus: 4}", "more 'replicas' with 'zero_stage: 3' for a larger model"),
        ("train.resources.min_replicas=1", "'resources.min_replicas' is not for training"),
        ("generate.resources.min_replicas=3", "'min_replicas' (3) is more than 'replicas' (2)"),
        ("generate.resources.accelerator_type=A100", "'accelerator_type: A100' needs 'gpus' above 0"),
        ("generate.resources.gpus=1.5", "'gpus' above 1 must be whole, got 1.5"),
        ("generate.resources.gpus=2", "'captioner.device_map: single' uses one GPU"),
        ("captioner.device_map=auto", "but 'generate.resources.gpus' is 0; set it to 2 or more"),
        ("score.resources.gpus=2", "CLIP uses one GPU or a fraction of one"),
        ("prompt= ", "prompt"),
        ("beta", "write key=value"),
        ("seed.x=1", "seed"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(override, told):
    with pytest.raises(ConfigError) as error:
        config.load(None, [override])
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_is_named_in_its_errors(tmp_path):
    missing = tmp_path / "absent.yaml"
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        config.load(missing)
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml is no valid YAML"):
        config.load(broken)
    listed = tmp_path / "list.yaml"
    listed.write_text("- a\n")
    with pytest.raises(ConfigError, match="expected keys and values"):
        config.load(listed)


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\ntrain: {beta: 0.5}\n")
    loaded = config.load(path, ["train.beta=0.2", "evaluate.modes.greedy={temperature: 0, max_new_tokens: 7}"])
    assert (loaded.seed, loaded.train.beta) == (3, 0.2)
    assert loaded.evaluate.modes["greedy"].max_new_tokens == 7


def test_yaml_round_trips():
    built = config.build({"seed": 5, "select": {"first": 2}}, where="test")
    import yaml

    assert config.build(yaml.safe_load(built.to_yaml()), where="test") == built


def test_fingerprints_ignore_placement_and_see_everything_else():
    base = RunConfig()
    placed = config.build({"generate": {"resources": {"replicas": 7}}}, where="test")
    hotter = config.build({"generate": {"decoding": {"temperature": 0.7}}}, where="test")
    assert base.fingerprint("generate") == placed.fingerprint("generate")
    many = {"replicas": 7, "min_replicas": 1, "gpus": 2, "accelerator_type": "L4"}
    laid_out = config.build(
        {"generate": {"resources": many}, "captioner": {"device_map": "auto"}, "score": {"resources": {"gpus": 0.25}}},
        where="test",
    )
    for section in ("generate", "captioner", "score"):
        assert base.fingerprint(section) == laid_out.fingerprint(section)
    assert config.differences(base, laid_out) == []
    assert base.fingerprint("generate") != hotter.fingerprint("generate")
    assert base.fingerprint("train") == hotter.fingerprint("train")
    assert config.differences(base, hotter) == ["generate.decoding.temperature: 1.0 -> 0.7"]
    assert config.differences(base, placed) == []


def test_every_setting_is_documented_where_its_name_does_not_say_it_all():
    """Fields without a docstring are only those whose name is the field's own term."""
    plain = {"learning_rate", "epochs", "max_grad_norm", "weight_decay", "gradient_checkpointing"}
    sections = [RunConfig, *config.Section.__subclasses__()]
    undocumented = {
        name
        for section in sections
        for name, field in section.model_fields.items()
        if field.description is None
        and not (isinstance(field.annotation, type) and issubclass(field.annotation, config.Section))
    }
    assert undocumented - plain == set()


def test_evaluation_reads_where_training_does_unless_it_says_where():
    here = {"source": {"kind": "folder", "path": "/a", "images": "/i"}}
    same, own, other = (
        config.build({**here, "evaluate": {"source": source}}, where="test").evaluate.source
        for source in ({"kind": "folder"}, {"kind": "folder", "path": "/b"}, {"kind": "miniworld"})
    )
    assert (same.path, same.images) == ("/a", "/i")
    assert (own.path, own.images) == ("/b", None)
    assert other.path is None
    smoke = config.load(Path(__file__).parents[1] / "configs" / "llava-1.5-7b-smoke.yaml", ["source.path=/data/images"])
    assert smoke.evaluate.source.path == "/data/images"


@pytest.mark.parametrize("setting", ["train.keep=3", "train.checkpoint_every=7", "train.max_failures=0"])
def test_how_a_training_is_kept_safe_is_part_of_no_fingerprint(setting):
    assert config.load(None, [setting]).fingerprint("train") == RunConfig().fingerprint("train")


def test_which_layers_are_trained_is_part_of_the_fingerprint():
    assert config.load(None, ["train.trained_layers=1"]).fingerprint("train") != RunConfig().fingerprint("train")
