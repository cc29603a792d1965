"""API keys: made by the command line, stored as hashes, found by servers, refused when they are wrong."""

import json
import stat

import pytest
from typer.testing import CliRunner

from jsfree.config import Serve
from jsfree.errors import ConfigError
from ray_jobs.cli import app
from serve import keys
from serve.keys import Key, Keyring, KeySource


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user without keys."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (keys.API_KEY, keys.KEYS_FILE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def command(*words: str):
    return CliRunner().invoke(app, ["serve", "keys", *words])


def made(*words: str) -> str:
    done = command("add", *words)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def test_a_key_is_printed_once_and_stored_as_a_hash():
    secret = made("website", "--requests-per-minute", "60")
    file = keys.default_file()
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(secret) > 40
    assert secret != made("other")
    listed = command("list").stdout
    assert "website  captions" in listed
    assert "60 requests per minute" in listed
    assert secret not in listed


def test_a_server_finds_the_keys_of_its_user():
    assert KeySource.configured(Serve()).is_empty
    secret = made("website", "--tokens-per-minute", "1000")
    ring = Keyring(KeySource.configured(Serve()))
    assert not ring.is_empty
    assert ring.find(secret) == Key(
        name="website", sha256=keys.sha256(secret), tokens_per_minute=1000, created=keys.today()
    )
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), "website", keys.sha256(secret), "\ud800"):
        assert ring.find(wrong) is None


def test_a_key_of_the_environment_or_the_command_is_valid_beside_the_file():
    secret = made("website")
    for source in (
        KeySource.configured(Serve(), {keys.API_KEY: "from-environment"}),
        KeySource.configured(Serve(), {}, "from-environment"),
        KeySource.configured(Serve(), {keys.API_KEY: "another"}, "from-environment"),
    ):
        ring = Keyring(source)
        assert ring.find("from-environment").access == "all"
        assert ring.find(secret).name == "website"
        assert ring.find("another") is None
        assert "from-environment" not in repr(source)


def test_the_file_is_chosen_by_setting_variable_and_default(home):
    given, variable = home / "given.json", home / "variable.json"
    one, two = made("one", "--file", str(given)), made("two", "--file", str(variable))
    environment = {keys.KEYS_FILE: str(variable)}
    ring = Keyring(KeySource.configured(Serve(keys_file=str(given)), environment))
    assert (ring.find(one).name, ring.find(two)) == ("one", None)
    assert Keyring(KeySource.configured(Serve(), environment)).find(two).name == "two"


def test_a_removed_key_is_refused_by_a_running_server(monkeypatch):
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 0)
    secret, other = made("website"), made("other")
    ring = Keyring(KeySource.configured(Serve()))
    assert ring.find(secret).name == "website"
    assert command("remove", "website").exit_code == 0
    assert ring.find(secret) is None
    assert ring.find(other).name == "other"
    command("remove", "other")
    assert not ring.is_empty  # without its last key a server does not become open
    assert ring.find(other) is None
    assert ring.find(made("third")).name == "third"


def test_a_key_that_is_removed_while_a_server_starts_is_refused(monkeypatch):
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 0)
    secret, read = made("website"), keys.read_keys

    def read_before_removal(file):
        monkeypatch.setattr(keys, "read_keys", read)
        found = read(file)
        assert command("remove", "website").exit_code == 0
        return found

    source = KeySource.configured(Serve())
    monkeypatch.setattr(keys, "read_keys", read_before_removal)
    ring = Keyring(source)
    assert ring.find(secret) is None


def test_white_space_around_a_key_of_the_environment_is_no_part_of_it():
    ring = Keyring(KeySource.configured(Serve(), {keys.API_KEY: "a key\n"}))
    assert ring.find("a key").name == "api-key"
    with pytest.raises(ConfigError, match="the API key is blank"):
        KeySource.configured(Serve(), {keys.API_KEY: "\n"})


def test_a_damaged_file_keeps_a_running_server_as_it_was(monkeypatch, caplog):
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 0)
    secret = made("website")
    ring = Keyring(KeySource.configured(Serve()))
    keys.default_file().write_text("{")
    assert ring.find(secret).name == "website"
    assert "cannot be used" in caplog.text
    keys.default_file().unlink()
    assert ring.find(secret).name == "website"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not valid JSON"),
        ("[]", "dictionary"),
        ('{"kees": []}', "kees"),
        ('{"keys": [{"name": "a b", "sha256": "%s"}]}' % ("0" * 64), "keys.0.name"),
        ('{"keys": [{"name": "a", "sha256": "secret"}]}', "keys.0.sha256"),
        ('{"keys": [{"name": "a", "sha256": "%s", "requests_per_minute": 0}]}' % ("0" * 64), "requests_per_minute"),
        (None, "cannot be read"),
    ],
)
def test_an_invalid_file_is_refused_with_its_place_but_not_its_content(home, content, told):
    file = home / "keys.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"keys\.json") as error:
        KeySource.configured(Serve(keys_file=str(file)))
    assert told in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_an_open_address_needs_a_key_or_no_auth(host):
    with pytest.raises(ConfigError, match=f"{host} can be reached from other machines.*--no-auth"):
        KeySource.configured(Serve(host=host))
    assert KeySource.configured(Serve(host=host, no_auth=True)).is_empty
    assert not KeySource.configured(Serve(host=host), {}, "a key").is_empty
    for local in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        assert KeySource.configured(Serve(host=local)).is_empty


def test_wrong_uses_of_the_command_line_are_refused():
    made("website")
    for words in (["add", "website"], ["add", "a/b"], ["remove", "nobody"], ["list", "--file", "/nonexistent/x"]):
        done = command(*words)
        assert isinstance(done.exception, ConfigError)
    assert len(json.loads(keys.default_file().read_text())["keys"]) == 1
    missing = CliRunner().invoke(app, ["serve"])
    assert missing.exit_code == 2
    assert "--run" in missing.output
