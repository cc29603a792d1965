"""Loading and validation of configurations."""

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
    ("override", "message"),
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
        ("select.first=9", "'first' (9), 'last' (7) and 'splits' (10) must be in ascending order"),
        ("source.kind=folder", "source: kind 'folder' requires 'path'"),
        ("train.pairs_per_step=33", "must be a multiple of the 2 training workers"),
        ("train.resources={gpus: 0.5}", "a training worker uses 0 or 1 GPUs, not 0.5"),
        ("train.resources={gpus: 4}", "more 'replicas' with 'zero_stage: 3' for a larger model"),
        ("train.resources.min_replicas=1", "'resources.min_replicas' cannot be used for training"),
        ("generate.resources.min_replicas=3", "'min_replicas' (3) must not exceed 'replicas' (2)"),
        ("generate.resources.accelerator_type=A100", "'accelerator_type: A100' requires 'gpus' above 0"),
        ("generate.resources.gpus=1.5", "'gpus' above 1 must be a whole number, got 1.5"),
        ("generate.resources.gpus=2", "'captioner.device_map: single' uses one GPU"),
        ("captioner.device_map=auto", "but 'generate.resources.gpus' is 0; set it to 2 or more"),
        ("score.resources.gpus=2", "CLIP uses at most one GPU"),
        ("prompt= ", "prompt"),
        ("beta", "write key=value"),
        ("seed.x=1", "seed"),
        ("seed=3 # the third", "'#' as the start of a comment"),
        ("train.lora={rank: 4} #", "'#' as the start of a comment"),
        ("evaluate.modes={a: {temperature: 0}, a: {}}", "duplicate key 'a'"),
        ("run=", "run: must not be empty"),
        ("source.count=.inf", "source.count: Input should be a finite number"),
    ],
)
def test_invalid_settings_are_refused(override, message):
    with pytest.raises(ConfigError) as error:
        config.load(None, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_name_the_file(tmp_path):
    missing = tmp_path / "absent.yaml"
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        config.load(missing)
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid YAML"):
        config.load(broken)
    listed = tmp_path / "list.yaml"
    listed.write_text("- a\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
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


def test_fingerprints_ignore_placement_only():
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


def test_every_setting_is_documented():
    sections = [RunConfig, *config.Section.__subclasses__()]
    undocumented = {
        name
        for section in sections
        for name, field in section.model_fields.items()
        if field.description is None
        and not (isinstance(field.annotation, type) and issubclass(field.annotation, config.Section))
    }
    assert undocumented == set()


def test_evaluation_source_inherits_the_training_path():
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
def test_checkpointing_is_not_fingerprinted(setting):
    assert config.load(None, [setting]).fingerprint("train") == RunConfig().fingerprint("train")


def test_trained_layers_are_fingerprinted():
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
def test_string_overrides_are_literal(text):
    for key in ("run", "prompt", "serve.host", "captioner.ref"):
        assert dict(dotted(config.load(None, [f"{key}={text}"])))[key] == text
        assert dict(dotted(config.load(None, values={key: text})))[key] == text
        assert config.parse_override(config.format_override(key, text)) == (key, text)


def dotted(loaded: RunConfig):
    return loading._flat(loaded.model_dump())


@pytest.mark.parametrize("text", ['"a b"', "'x'", '"', "''", "null", "~", "plain"])
def test_formatted_overrides_are_parsed_back(text):
    for key in ("run", "source.path", "models.commits.owner/name"):
        assert config.parse_override(config.format_override(key, text)) == (key, text)


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
def test_overrides_honor_quotes_and_null(override, expected):
    assert config.parse_override(override)[1] == expected


def test_values_take_precedence_over_overrides():
    assert config.load(None, ["run=a", "seed=3"], {"run": "b", "seed": None}).model_dump(include={"run", "seed"}) == {
        "run": "b",
        "seed": 3,
    }
    assert config.load(None, ["train.lora.rank=4"]).train.lora.rank == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\ntrain: {beta: 0.3}\ntrain: {epochs: 1}\n", "duplicate key 'train' in lines 2 and 3"),
        (
            b"train:\n  validation: {pairs: 2,\n    every: 3, pairs: 4}\n",
            "duplicate key 'pairs' in lines 2 and 3",
        ),
        (b"evaluate:\n  modes:\n    no: {temperature: 0}\n", "line 3: the key no is read as bool"),
        (b"1: x\n", "line 1: the key 1 is read as int"),
        (b"? [a]\n: x\n", "line 1: a key is read as seq"),
        ('prompt: "D\xe9cris"\n'.encode("latin-1"), "line 1 is not UTF-8"),
        ("seed: 1\nprompt: é\n".encode("utf-16-le"), "line 2 is not UTF-8"),
        ("seed: 1\n".encode("utf-16-le"), "not valid YAML"),
        (b"seed: 1\n\tbeta: 2\n", "line 2, column 1"),
        (b"seed: 1\n---\nseed: 2\n", "line 2, column 1"),
        (b"just a text\n", "expected a mapping"),
        (b"run: 2024-13-45\n", "not valid YAML"),
        (b"run: 2024-01-02\n", "run: Input should be a valid string (got datetime.date(2024, 1, 2)); put it in quotes"),
        (b"seed: " + b"9" * 5000, "not valid YAML"),
        (b"a: &a {b: *a}\n", "an alias refers to its own ancestor"),
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
def test_ambiguous_yaml_is_refused(content, message, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        config.load(file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marked_encodings_are_read(encoding, tmp_path):
    (tmp_path / "c.yaml").write_bytes('prompt: "Décris 图"\nscore: {resources: &one {replicas: 1}}\n'.encode(encoding))
    assert config.load(tmp_path / "c.yaml").prompt == "Décris 图"
    (tmp_path / "c.yaml").write_bytes(
        "score: {resources: &one {replicas: 1}}\ngenerate: {resources: {<<: *one, cpus: 2}}".encode(encoding)
    )
    assert config.load(tmp_path / "c.yaml").generate.resources.cpus == 2


def numbers(section: type[config.Section], prefix: str = ""):
    """Dotted keys of all numeric settings."""
    for name, field in section.model_fields.items():
        for member in loading._members(field.annotation):
            if loading._is_section(member):
                yield from numbers(member, f"{prefix}{name}.")
            elif member in (int, float):
                yield prefix + name


def test_non_finite_numbers_are_refused():
    keys = [*numbers(RunConfig), "evaluate.modes.greedy.top_p", "evaluate.modes.greedy.temperature"]
    assert len(keys) > 60
    for key in keys:
        for value in (".inf", "-.inf", ".nan", "'inf'", "1e999"):
            with pytest.raises(ConfigError):
                config.load(None, [f"{key}={value}"])


def test_configurations_are_utf8_in_any_locale(tmp_path):
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
def test_unwritable_text_is_refused(text):
    for settings in (
        {"prompt": text},
        {"run": f"runs/{text}"},
        {"generate": {"decoding": {"stop": [text]}}},
        {"evaluate": {"modes": {text: {}}}},
    ):
        with pytest.raises(ConfigError, match="lone surrogate"):
            config.build(settings, "test")
    with pytest.raises(ConfigError, match=r"prompt: .*lone surrogate"):
        config.load(None, [f"prompt={text}"])


@pytest.mark.parametrize("value", ["!!bool maybe", "!!timestamp foo", "!!int ''", "!!float ''"])
def test_values_that_do_not_fit_their_tag_are_refused(value, tmp_path):
    (tmp_path / "c.yaml").write_text(f"seed: {value}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        config.load(tmp_path / "c.yaml")
