"""Captions turned back into images: by MiniWorld's rules, and by an image model over HTTP."""

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jsfree import config
from jsfree.errors import ConfigError, JudgeError, RowError
from jsfree.evaluation.benchmarks.base import Answer
from jsfree.evaluation.benchmarks.image_painter import ImagePainter, PainterSettings, read_painter_settings
from jsfree.evaluation.benchmarks.measuring import CountTable, measure
from jsfree.evaluation.benchmarks.miniworld_painter import ScenePainter, scene_of
from jsfree.evaluation.benchmarks.reconstruction import Reconstruction
from jsfree.miniworld.world import caption, png_bytes, scene, true_caption
from jsfree.run.folder import Folder

SCENES = [scene("test", number) for number in range(4)]


def test_a_true_caption_becomes_its_scene():
    for each in SCENES:
        drawn = scene_of(true_caption(each))
        assert drawn.context == each.context
        drawn_objects, objects = (
            {(item.name, item.colour, item.position) for item in of.objects} for of in (drawn, each)
        )
        assert drawn_objects == objects
        counts = ScenePainter().overlap(each.scene_id, true_caption(each))
        assert counts["either"] == counts["common"] == counts["alike"] == len(each.objects)


def test_objects_that_differ_are_not_alike():
    each = SCENES[0]
    first, *_ = each.objects
    other = "red" if first.colour != "red" else "blue"
    counts = ScenePainter().overlap(each.scene_id, caption(each.context, [(first.name, other, first.position)]))
    assert counts == {"either": len(each.objects), "common": 1, "alike": 0}
    assert ScenePainter().overlap(each.scene_id, "Nothing.") == {"either": len(each.objects), "common": 0, "alike": 0}


def test_captions_without_places_fill_the_free_ones():
    drawn = scene_of("There is a red cup and a dog. A cup.")
    assert [item.name for item in drawn.objects] == ["cup", "dog"]
    assert len({item.position for item in drawn.objects}) == 2


def samples():
    for each in SCENES:
        image = {"id": each.scene_id, "uri": None, "bytes": png_bytes(each), "sha256": None}
        yield {"sample_id": f"{each.index}", "image": image, "prompt": "Describe."}


def suite_with(painter, tmp_path):
    return Reconstruction(list(samples()), painter, config.RunConfig(), Folder(str(tmp_path / "out")))


def values(suite, measured):
    return {name: each.value for name, each in measure(CountTable.of(measured.rows), suite.measures, 10).items()}


def test_better_captions_make_more_similar_pictures(tmp_path):
    suite = suite_with(ScenePainter(), tmp_path)
    questions = suite.questions(tmp_path)
    truths = [true_caption(each) for each in SCENES]
    good, bad = (
        suite.score(
            tmp_path,
            [Answer(one.question_id, one.image["id"], text) for one, text in zip(questions, texts, strict=True)],
        )
        for texts in (truths, [*truths[1:], truths[0]])
    )
    assert values(suite, good)["exact_overlap"] == 1
    assert values(suite, bad)["exact_overlap"] < 1
    assert values(suite, good)["clip_similarity"] > values(suite, bad)["clip_similarity"]
    assert Folder(str(tmp_path / "out")).read(good.details[0]["picture"]).startswith(b"\x89PNG")


class ImageServer:
    """Draws every prompt as the same scene, and speaks the images API; ``status`` is that of its responses."""

    def __init__(self):
        self.prompts, self.status, self.picture = [], 200, png_bytes(SCENES[0])

    @contextlib.contextmanager
    def serve(self):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.prompts.append(body["prompt"])
                picture = base64.b64encode(owner.picture).decode()
                content = {"created": 0, "data": [{"b64_json": picture}]} if owner.status == 200 else {"error": {}}
                self.send_response(owner.status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}/v1"
            server.shutdown()
            thread.join()


def test_an_image_model_is_paid_once_for_a_picture(tmp_path):
    server = ImageServer()
    with server.serve() as url:
        settings = PainterSettings(url=url, model="painter", cache=str(tmp_path / "cache"), price=0.5, attempts=1)
        painter = ImagePainter(settings)
        suite = suite_with(painter, tmp_path)
        answers = [Answer(each.question_id, each.image["id"], "A red cup.") for each in suite.questions(tmp_path)[:1]]
        measured = suite.score(tmp_path, answers)
        again = suite_with(ImagePainter(settings), tmp_path)
        repeated = again.score(tmp_path, answers)
    assert len(server.prompts) == 1
    assert "A red cup." in server.prompts[0]
    assert values(suite, measured)["clip_similarity"] == pytest.approx(1, abs=1e-4)
    assert "1 new pictures, 0.50 spent" in measured.notes[0]
    assert "0 new pictures, 0.00 spent; 1 were stored" in repeated.notes[0]
    assert suite.protocol["painter"]["model"] == "painter"


def test_refused_captions_are_error_rows_and_a_refused_key_stops(tmp_path):
    server = ImageServer()
    with server.serve() as url:
        painter = ImagePainter(PainterSettings(url=url, model="painter", cache=str(tmp_path / "cache"), attempts=1))
        server.status = 400
        (failed,) = painter.paint(["A red cup."])
        assert isinstance(failed, RowError)
        assert failed.kind == "rejected"
        server.status = 401
        with pytest.raises(JudgeError, match="JSFREE_PAINTER_API_KEY"):
            painter.paint(["A red cup."])


def test_a_damaged_picture_is_an_error_row_and_is_not_stored(tmp_path):
    server = ImageServer()
    server.picture = server.picture[: len(server.picture) // 2]
    with server.serve() as url:
        settings = PainterSettings(url=url, model="painter", cache=str(tmp_path / "cache"), attempts=1)
        suite = suite_with(ImagePainter(settings), tmp_path)
        answers = [Answer(each.question_id, each.image["id"], "A red cup.") for each in suite.questions(tmp_path)[:1]]
        assert [error["kind"] for error in suite.score(tmp_path, answers).errors] == ["undecodable"]
        server.picture = png_bytes(SCENES[0])
        assert len(suite_with(ImagePainter(settings), tmp_path).score(tmp_path, answers).rows) == 1


def test_equal_captions_are_painted_once_and_refused_ones_are_not_paid(tmp_path):
    server = ImageServer()
    with server.serve() as url:
        painter = ImagePainter(
            PainterSettings(url=url, model="painter", cache=str(tmp_path), price=1.0, budget=1.0, attempts=1)
        )
        server.status = 429
        (failed,) = painter.paint(["A cat."])
        assert isinstance(failed, RowError)
        assert failed.kind == "rate_limit"
        server.status = 200
        first, second = painter.paint(["A red cup.", "A red cup."])
    assert first == second == server.picture
    assert server.prompts.count(server.prompts[-1]) == 1
    assert painter.summary().startswith("1 new pictures, 1.00 spent")


def test_the_budget_of_pictures_is_kept(tmp_path):
    server = ImageServer()
    with server.serve() as url:
        settings = PainterSettings(
            url=url, model="painter", cache=str(tmp_path), price=1.0, budget=2.0, attempts=1, concurrency=1
        )
        with pytest.raises(JudgeError, match="budget of the image model is spent"):
            ImagePainter(settings).paint(["one", "two", "three"])
    assert len(server.prompts) == 2


def test_wrong_settings_are_reported(tmp_path):
    path = tmp_path / "painter.yaml"
    path.write_text("model: x\nbudget: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="'budget' requires 'price'"):
        read_painter_settings(str(path))
    with pytest.raises(ConfigError, match="correct --painter"):
        read_painter_settings(str(tmp_path / "absent.yaml"))
