import re

import pytest

from jsfree.config.loading import validate
from jsfree.errors import ConfigError
from jsfree.judge.settings import JudgeSettings, Price, read_prices, read_settings

TABLE = """\
currency: USD
as_of: 2026-11-01
models:
  m: {input: 2.0, output: 8.0, cached_input: 0.5}
"""


def settings(**values):
    return validate(JudgeSettings, values, "judge.yaml")


def test_the_default_judge_is_pinned_and_another_model_is_not():
    assert settings().revision
    assert settings(model="gpt-x-2026-01-01").revision is None
    assert settings(model="other/model", revision="abc").revision == "abc"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"url": "https://me:secret@host/v1"}, "user name, password"),
        ({"url": "host/v1"}, "no http or https URL"),
        ({"budget": 1.0}, "requires 'prices'"),
        ({"concurency": 2}, "did you mean 'concurrency'"),
    ],
)
def test_wrong_settings_name_the_key_and_the_remedy(values, message):
    with pytest.raises(ConfigError, match=message):
        settings(**values)


def test_the_key_is_read_from_the_environment_only(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-123")
    judge = settings(api_key_variable="MY_KEY")
    assert judge.api_key() == "sk-123"
    assert "sk-123" not in judge.model_dump_json() + repr(judge)
    assert settings(api_key_variable="NOT_SET_ANYWHERE").api_key() is None


def test_cost_of_a_reply_uses_the_price_of_cached_prompts():
    price = Price(input=2.0, output=8.0, cached_input=0.5)
    assert price.cost(1_000_000, 0) == pytest.approx(2.0)
    assert price.cost(1000, 100, cached_tokens=400) == pytest.approx((600 * 2 + 400 * 0.5 + 100 * 8) / 1e6)


def test_price_tables_are_read_and_missing_models_are_named(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(TABLE, encoding="utf-8")
    table = read_prices(str(path))
    assert table.currency == "USD"
    assert table.as_of.isoformat() == "2026-11-01"
    assert table.price_of("m", "prices").output == 8.0
    with pytest.raises(ConfigError, match=re.escape("no price for the model 'n'; add it to 'models' (there: m)")):
        table.price_of("n", "prices")
    path.write_text(TABLE.replace("output", "ouput"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"models\.m.*did you mean 'output'"):
        read_prices(str(path))
    with pytest.raises(ConfigError, match=r"missing\.yaml: No such file"):
        read_prices(str(tmp_path / "missing.yaml"))


def test_settings_are_read_with_or_without_their_section(tmp_path):
    path = tmp_path / "judge.yaml"
    for text in ("model: m\nconcurrency: 3\n", "judge:\n  model: m\n  concurrency: 3\n"):
        path.write_text(text, encoding="utf-8")
        read = read_settings(str(path), {"concurrency": 5, "budget": None})
        assert (read.model, read.concurrency, read.revision) == ("m", 5, None)
    assert read_settings(None) == JudgeSettings()
    path.write_text("judge: {modl: m}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"judge\.yaml.*did you mean 'model'"):
        read_settings(str(path))
