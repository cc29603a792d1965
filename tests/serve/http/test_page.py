"""The routes of the pages: a policy by hash, no data without a key, and no paths in any answer."""

import base64
import hashlib
import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from starlette.testclient import TestClient

from jsfree import config, schemas
from jsfree.errors import StorageError
from jsfree.miniworld import world
from jsfree.run.record import update_record
from jsfree.run.run import Run
from jsfree.run.streaming import scan_shard
from serve.http import page as pages
from serve.http import routes as api
from serve.http.protocol import RunModel
from serve.keys import NO_KEYS, Key, KeySource, sha256
from tests.support import example_run
from tests.support.asking import chat
from tests.support.recorded import AFTER, BEFORE, RecordedModel

MODELS = [RunModel("before", "m0", ""), RunModel("after", "m1", "", "m0")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = example_run.build(tmp_path_factory.mktemp("secret-folder") / "kitchen", source={"count": 30})
    rows = [example_run.sample(run, "test", index) for index in range(10)]
    example_run.write_rows(run, 1, "evaluation", rows, schemas.SAMPLES)
    nodes = {"a": {"host": "secret-host", "resources": {"CPU": 4.0}, "memory_gib": 8.0}}
    update_record(run, status="failed", error="secret-error in secret-folder", nodes=nodes)
    return run


def client_of(run, keys=NO_KEYS) -> TestClient:
    models = {"before": RecordedModel(BEFORE), "after": RecordedModel(AFTER)}
    app = api.create_app(MODELS, models, run.config.serve, run.config.prompt, keys)
    pages.install(app, run, MODELS)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def client(run):
    with client_of(run) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/runs"])
def test_the_policy_names_the_hashes_of_the_inline_style_and_script(client, path):
    response = client.get(path)
    assert response.status_code == 200
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        text = re.search(f"<{tag}>(.*?)</{tag}>", response.text, re.S)[1]
        assert text.strip()
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in response.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/runs"])
def test_the_pages_name_no_other_address_and_set_no_html_from_data(client, path):
    text = client.get(path).text
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|\sstyle=|\son[a-z]+=", text)


def test_without_a_key_only_the_pages_are_answered(run):
    keys = KeySource((Key(name="a", sha256=sha256("secret"), access="all"),))
    with client_of(run, keys) as client:
        assert client.get("/").status_code == client.get("/runs").status_code == 200
        for path in ("info", "samples/0", "scenes/0", "votes", "status", "report"):
            assert client.get(f"/page/{path}").status_code == 401
            allowed = client.get(f"/page/{path}", headers={"Authorization": "Bearer secret"})
            assert allowed.status_code in (200, 404)


@pytest.mark.parametrize("path", ["info", "samples/0", "samples/99", "scenes/0", "votes", "status", "report"])
def test_head_requests_are_answered_like_get_requests_without_a_body(client, path):
    answer = client.head(f"/page/{path}")
    assert (answer.status_code, answer.content) == (client.get(f"/page/{path}").status_code, b"")


def test_no_answer_names_paths_machines_or_messages(client):
    texts = [client.get(f"/page/{path}").text for path in ("info", "samples/0", "votes", "status")]
    assert "undecodable" in texts[3]
    for text in texts:
        assert "secret" not in text
        assert "17.jpg" not in text


def test_info_describes_what_is_served(client, run):
    info = client.get("/page/info").json()
    assert (info["run"], info["models"], info["samples"], info["scenes"]) == ("kitchen", ["m0", "m1"], 8, True)
    assert info["prompt"] == run.config.prompt
    assert info["score_edges"] == sorted(info["score_edges"])
    assert len(info["score_edges"]) == 4


def test_a_sample_is_the_image_of_the_run_with_the_words_that_are_absent(client):
    sample = client.get("/page/samples/2").json()
    scene = world.scene("test", 2)
    assert base64.b64decode(sample["image"].partition(",")[2]) == world.png_bytes(scene)
    assert not {item.name for item in scene.objects} & set(sample["absent"])
    assert len(sample["absent"]) > 60
    assert client.get("/page/samples/8").status_code == 404
    assert client.get("/page/samples/-1").status_code == 404


def test_the_first_picture_is_one_that_training_changed_the_caption_of(tmp_path):
    run = example_run.build(tmp_path / "run", source={"count": 30})
    rows = [example_run.sample(run, "test", index) for index in range(10)]
    example_run.write_rows(run, 1, "evaluation", rows, schemas.SAMPLES)
    before = run.stage(1, "captions/m0-greedy").read_shards(schemas.CAPTIONS).to_pylist()
    other = {**before[1], "text": "Another caption."}
    example_run.write_rows(run, 1, "captions/m1-greedy", [before[0], other, *before[2:]], schemas.CAPTIONS)
    with client_of(run) as client:
        assert client.get("/page/info").json()["first_sample"] == 1
    example_run.write_rows(run, 1, "captions/m1-greedy", before, schemas.CAPTIONS)
    with client_of(run) as client:
        assert client.get("/page/info").json()["first_sample"] == 0


def test_a_photograph_of_the_run_is_scaled_down_and_has_no_absent_words(tmp_path):
    Image.new("RGB", (3000, 2000), "teal").save(tmp_path / "large.png")
    source = {"kind": "folder", "path": str(tmp_path)}
    settings = {"run": str(tmp_path / "run"), "source": source, "evaluate": {"source": source}}
    run = Run.open(config.build(settings, where="test"))
    image = {"id": "large.png", "uri": str(tmp_path / "large.png"), "bytes": None, "sha256": None}
    missing = {**image, "uri": str(tmp_path / "missing.png")}
    rows = [{"sample_id": str(number), "image": each, "prompt": "x"} for number, each in enumerate((image, missing))]
    example_run.write_rows(run, 1, "evaluation", rows, schemas.SAMPLES)
    with client_of(run) as client:
        info = client.get("/page/info").json()
        assert (info["samples"], info["scenes"], info["score_edges"], info["report"]) == (2, False, [], False)
        sample = client.get("/page/samples/0").json()
        sent = Image.open(io.BytesIO(base64.b64decode(sample["image"].partition(",")[2])))
        assert (sent.format, max(sent.size), sample["absent"]) == ("JPEG", 1024, None)
        unreadable = client.get("/page/samples/1")
        assert unreadable.status_code == 500
        assert str(tmp_path) not in unreadable.text
        assert client.get("/page/scenes/0").status_code == 404


def test_new_scenes_are_none_of_the_run(client):
    first, second = (client.get(f"/page/scenes/{number}").json() for number in (0, 1))
    assert first["id"] != second["id"]
    assert int(first["id"].rpartition("-")[2]) >= 100_000
    assert client.get("/page/scenes/99999999999").status_code == 404


VOTE = {
    "winner": "m1",
    "loser": "m0",
    "tie": False,
    "image": "a" * 64,
    "ratio": 0.0,
    "views": 1,
    "temperature": 0.0,
    "seed": 1,
}


def test_votes_are_stored_and_tallied(client):
    assert client.get("/page/votes").json() == {"tally": []}
    assert client.post("/page/votes", json=VOTE).json() == {
        "tally": [{"models": ["m0", "m1"], "wins": [0, 1], "ties": 0}]
    }


@pytest.mark.parametrize(
    "change",
    [{"winner": "m9"}, {"winner": "m0"}, {"image": "x"}, {"ratio": 2}, {"more": 1}, {"tie": "yes"}, {"seed": -1}],
    ids=str,
)
def test_other_votes_are_refused_with_the_field(client, change):
    refused = client.post("/page/votes", json=VOTE | change)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"]


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{", None, "invalid_json"),
        (b"[]", None, "invalid_json"),
        (b"[" * 60_000, None, "invalid_json"),
        (json.dumps(VOTE | {LONG: 1}).encode(), "x" * 100, "unknown_parameter"),
        (json.dumps(VOTE | {"winner": None}).encode(), "winner", "missing_required_parameter"),
        (json.dumps(VOTE | {"winner": LONG}).encode(), "winner", "invalid_value"),
    ],
    ids=["no JSON", "a list", "deep", "a long key", "null", "a long name"],
)
def test_bodies_of_votes_are_limited_like_other_bodies(client, body, param, code):
    refused = client.post("/page/votes", content=body)
    assert refused.status_code == 400
    assert (refused.json()["error"]["param"], refused.json()["error"]["code"]) == (param, code)
    assert len(refused.content) < 1000


@pytest.mark.parametrize("path", ["samples/abc", "scenes/1.5", "samples/" + "9" * 5000])
def test_a_number_that_is_none_is_refused_in_the_format_of_other_errors(client, path):
    refused = client.get(f"/page/{path}")
    assert refused.status_code == 400
    assert refused.json()["error"].keys() == {"message", "type", "param", "code"}
    assert refused.json()["error"]["param"] == "number"
    assert len(refused.content) < 300
    assert "abc" not in refused.text


def test_a_run_that_cannot_be_read_is_reported_without_its_path(tmp_path):
    run = example_run.build(tmp_path / "run", source={"count": 30})
    (tmp_path / "run" / "round-1" / "evaluation" / "shard-00000.parquet").mkdir(parents=True)
    with client_of(run) as client:
        for path in ("info", "samples/0"):
            refused = client.get(f"/page/{path}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage")
            assert str(tmp_path) not in refused.text


def test_what_training_has_written_is_read_once(tmp_path, monkeypatch):
    run = example_run.build(tmp_path / "run", source={"count": 30})
    read = []

    def counted(folder, *arguments):
        read.append(folder.uri)
        return scan_shard(folder, *arguments)

    monkeypatch.setattr("serve.http.pictures.scan_shard", counted)
    with client_of(run) as client:
        assert client.get("/page/info").json()["samples"] == 0
        rows = [example_run.sample(run, "test", index) for index in range(3)]
        example_run.write_rows(run, 1, "evaluation", rows, schemas.SAMPLES)  # evaluated while it is served
        answers = [client.get("/page/info").json() for _ in range(3)]
    assert [answer["samples"] for answer in answers] == [3, 3, 3]
    assert len(read) == len(set(read)) > 1


def test_slow_reads_of_the_run_do_not_delay_captions(run, monkeypatch):
    released = threading.Event()

    def slow(*_, **__):
        released.wait(30)
        raise StorageError("slow")

    monkeypatch.setattr(pages, "read_status", slow)

    with client_of(run) as client, ThreadPoolExecutor(65) as clients:
        reads = [clients.submit(client.get, "/page/status") for _ in range(64)]
        time.sleep(0.3)
        try:
            caption = clients.submit(client.post, "/v1/chat/completions", json=chat())
            assert caption.result(timeout=10).status_code == 200
        finally:
            released.set()
        assert {read.result().status_code for read in reads} == {503}


def test_the_status_is_that_of_the_run(client):
    status = client.get("/page/status").json()
    assert status["state"] == "failed"
    assert [node["host"] for node in status["nodes"]] == ["node 1"]
    assert {"stages", "training", "pairs", "failures"} <= status.keys()
    assert status["pairs"][0]["picture"].startswith("data:image/jpeg")


def test_the_report_is_shown_once_it_is_written(client, run):
    assert client.get("/page/report").status_code == 404
    run.folder.write("report/index.html", b"<h1>Report</h1>")
    response = client.get("/page/report")
    assert response.text == "<h1>Report</h1>"
    assert "script-src" not in response.headers["content-security-policy"]
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
