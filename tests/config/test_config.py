"""Configuration: what a user mistypes is named, with the nearest valid key."""

import os
import subprocess
import sys

import pytest
import yaml

from jsfree import config
from jsfree.config import RunConfig, loading
from jsfree.errors import ConfigError
from tests.support import ROOT


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
        ("seed=3 # the third", "'#' as the start of a comment"),
        ("train.lora={rank: 4} #", "'#' as the start of a comment"),
        ("evaluate.modes={a: {temperature: 0}, a: {}}", "the key 'a' is given twice"),
        ("run=", "run: the text is empty"),
        ("source.count=.inf", "source.count: Input should be a finite number"),
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
    smoke = config.load(ROOT / "configs" / "llava-1.5-7b-smoke.yaml", ["source.path=/data/images"])
    assert smoke.evaluate.source.path == "/data/images"


@pytest.mark.parametrize("setting", ["train.keep=3", "train.checkpoint_every=7", "train.max_failures=0"])
def test_how_a_training_is_kept_safe_is_part_of_no_fingerprint(setting):
    assert config.load(None, [setting]).fingerprint("train") == RunConfig().fingerprint("train")


def test_which_layers_are_trained_is_part_of_the_fingerprint():
    assert config.load(None, ["train.trained_layers=1"]).fingerprint("train") != RunConfig().fingerprint("train")


LITERAL = (
    "exp #1",
    "2024",
    "no",
    "null",
    "007",
    "1_000",
    "2024-01-02",
    "a: b",
    "@x",
    "%x",
    "::",
    "[a",
    "*",
    "'",
    '"a" b',
)


@pytest.mark.parametrize("text", [*LITERAL, "~", "true", "1e3", " x ", "{a: b}", "ü", "- a", "x # y", "# z", "!!str 5"])
def test_a_text_is_taken_as_it_is_typed(text):
    for key in ("run", "prompt", "serve.host", "captioner.ref"):
        assert dict(dotted(config.load(None, [f"{key}={text}"])))[key] == text
        assert dict(dotted(config.load(None, values={key: text})))[key] == text
        assert config.parsed_override(config.as_override(key, text)) == (key, text)


def dotted(loaded: RunConfig):
    return loading._flat(loaded.model_dump())


@pytest.mark.parametrize("text", ['"a b"', "'x'", '"', "''", "null", "~", "plain"])
def test_what_is_written_as_an_override_is_read_back(text):
    for key in ("run", "source.path", "models.commits.owner/name"):
        assert config.parsed_override(config.as_override(key, text)) == (key, text)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ('source.path="/data/my images"', "/data/my images"),
        ("source.path='it''s'", "it's"),
        (r'source.path="a\tb"', "a\tb"),
        ("source.path=null", None),
        ("source.path=~", None),
        ("source.path=", None),
        ("source.path=no", "no"),
        ("clip.pretrained=1234567", "1234567"),
        ("models.commits.owner/name=0123456", "0123456"),
        ("evaluate.modes.vcd.contrast.kind=vcd", "vcd"),
        ("generate.decoding.stop=['#', 'x']", ["#", "x"]),
        ("generate.decoding.stop=[a#b]", ["a#b"]),
        ("train.lora.rank=4", 4),
        ("train.lora=null", None),
        ("serve.port=8001", 8001),
        ("zzz.unknown=1", 1),
    ],
)
def test_quotes_around_a_text_and_null_mean_what_yaml_means(override, expected):
    assert config.parsed_override(override)[1] == expected


def test_values_win_over_overrides_and_none_leaves_a_setting_alone():
    assert config.load(None, ["run=a", "seed=3"], {"run": "b", "seed": None}).model_dump(include={"run", "seed"}) == {
        "run": "b",
        "seed": 3,
    }
    assert config.load(None, ["train.lora.rank=4"]).train.lora.rank == 4


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"seed: 1\ntrain: {beta: 0.3}\ntrain: {epochs: 1}\n", "key 'train' is given twice, in lines 2 and 3"),
        (
            b"train:\n  validation: {pairs: 2,\n    every: 3, pairs: 4}\n",
            "key 'pairs' is given twice, in lines 2 and 3",
        ),
        (b"evaluate:\n  modes:\n    no: {temperature: 0}\n", "line 3: the key no is read as bool"),
        (b"1: x\n", "line 1: the key 1 is read as int"),
        (b"? [a]\n: x\n", "line 1: the key that begins here is read as seq"),
        ('prompt: "D\xe9cris"\n'.encode("latin-1"), "line 1 is not UTF-8"),
        ("seed: 1\nprompt: é\n".encode("utf-16-le"), "line 2 is not UTF-8"),
        ("seed: 1\n".encode("utf-16-le"), "no valid YAML"),
        (b"seed: 1\n\tbeta: 2\n", "line 2, column 1"),
        (b"seed: 1\n---\nseed: 2\n", "line 2, column 1"),
        (b"just a text\n", "expected keys and values"),
        (b"run: 2024-13-45\n", "no valid YAML"),
        (b"run: 2024-01-02\n", "run: Input should be a valid string (got datetime.date(2024, 1, 2)); put it in quotes"),
        (b"seed: " + b"9" * 5000, "no valid YAML"),
        (b"a: &a {b: *a}\n", "an alias refers to a section that it is part of"),
        (b"run: " + b"[" * 5000, "nested too deeply"),
        (
            b"a0: &a0 [x]\n"
            + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)),
            "aliases expand to more than",
        ),
        (
            b"a0: &a0 {x: 1}\n"
            + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)),
            "aliases expand to more than",
        ),
    ],
)
def test_a_file_that_yaml_would_misread_is_refused_with_the_line(content, told, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        config.load(file)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_say_what_they_are_are_read(encoding, tmp_path):
    (tmp_path / "c.yaml").write_bytes('prompt: "Décris 图"\nscore: {resources: &one {replicas: 1}}\n'.encode(encoding))
    assert config.load(tmp_path / "c.yaml").prompt == "Décris 图"
    (tmp_path / "c.yaml").write_bytes(
        "score: {resources: &one {replicas: 1}}\ngenerate: {resources: {<<: *one, cpus: 2}}".encode(encoding)
    )
    assert config.load(tmp_path / "c.yaml").generate.resources.cpus == 2


def numbers(section: type[config.Section], prefix: str = ""):
    """The dotted keys of all numbers of a configuration."""
    for name, field in section.model_fields.items():
        for member in loading._members(field.annotation):
            if loading._is_section(member):
                yield from numbers(member, f"{prefix}{name}.")
            elif member in (int, float):
                yield prefix + name


def test_no_number_is_infinite_or_missing():
    keys = [*numbers(RunConfig), "evaluate.modes.greedy.top_p", "evaluate.modes.greedy.temperature"]
    assert len(keys) > 60
    for key in keys:
        for value in (".inf", "-.inf", ".nan", "'inf'", "1e999"):
            with pytest.raises(ConfigError):
                config.load(None, [f"{key}={value}"])


def test_a_configuration_is_read_and_shown_in_an_ascii_locale(tmp_path):
    (tmp_path / "c.yaml").write_text("prompt: Décris l'image\n", encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "ray_jobs.cli", "config", "--config"]
    shown = subprocess.run([*command, str(tmp_path / "c.yaml")], capture_output=True, env=environment, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["prompt"] == "Décris l'image"
    refused = subprocess.run([*command, str(tmp_path / "ü.yaml")], capture_output=True, env=environment, cwd=ROOT)
    assert refused.returncode == 2
    assert b"No such file" in refused.stderr
    assert b"Traceback" not in refused.stderr


@pytest.mark.parametrize("text", ["\ud83d", "a\0b"])
def test_text_that_files_cannot_hold_is_refused_wherever_it_is(text):
    for settings in (
        {"prompt": text},
        {"run": f"runs/{text}"},
        {"generate": {"decoding": {"stop": [text]}}},
        {"evaluate": {"modes": {text: {}}}},
    ):
        with pytest.raises(ConfigError, match="surrogate pair"):
            config.build(settings, "test")
    with pytest.raises(ConfigError, match=r"prompt: .*surrogate pair"):
        config.load(None, [f"prompt={text}"])


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp foo", "!!int ''", "!!float ''"])
def test_a_value_that_is_not_of_its_tag_is_one_clear_error(value, tmp_path):
    (tmp_path / "c.yaml").write_text(f"seed: {value}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        config.load(tmp_path / "c.yaml")
