"""The pages in a real browser, against the real HTTP application with recorded models."""

import io
import json
import re
import shutil
import time

import pytest
from PIL import Image

from jsfree.miniworld import world
from jsfree.run.lease import Lease
from jsfree.run.record import update_record
from jsfree.run.run import Run
from serve.page import FOLDER
from tests.serve.page.conftest import KEY, serving
from tests.support import ROOT
from tests.support.recorded import AFTER, BEFORE, UNSEEN

AXE = ROOT / ".cache" / "browser" / "node_modules" / "axe-core" / "axe.min.js"
PHONE = {"width": 390, "height": 844}
DONE = "document.getElementById('status').textContent.startsWith('Done')"


def until(page, expression: str, seconds: float = 30.0) -> None:
    """Wait until an expression is true; Playwright's own function uses eval, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def ready(watched):
    watched.page.wait_for_selector("#samples button >> nth=7")
    return watched.page


def caption(page):
    page.click("#go")
    until(page, DONE)


def spoken(page, at: int) -> str:
    """The text of a column without scores and tags."""
    return page.evaluate(
        """(at) => {
          const text = document.getElementById("text-" + at).cloneNode(true);
          for (const mark of text.querySelectorAll(".value, .tag, .sr")) mark.remove();
          return text.textContent.trim().replace(/\\s+/g, " ");
        }""",
        at,
    )


def test_a_picture_is_uploaded_and_both_captions_stream_side_by_side(shown_run, open_page, tmp_path):
    content = world.png_bytes(world.scene("development", 3))
    (tmp_path / "mine.png").write_bytes(content)
    with serving(shown_run, pause=0.08) as slow:
        page = ready(open_page(slow.url))
        page.set_input_files("#file", tmp_path / "mine.png")
        until(page, "document.getElementById('preview').alt.endsWith('mine.png')")
        page.click("#go")
        until(page, "document.getElementById('text-0').textContent.length > 5")
        streamed = [spoken(page, at) for at in (0, 1)]
        assert page.locator("#stop").is_enabled()
        until(page, DONE)
        assert (spoken(page, 0), spoken(page, 1)) == (BEFORE, AFTER)
    assert 0 < len(streamed[0]) < len(BEFORE)
    assert BEFORE.startswith(streamed[0])
    assert AFTER.startswith(streamed[1])
    assert [model.questions[-1].image for model in slow.models.values()] == [content] * 2
    boxes = [page.locator(f"#text-{at}").bounding_box() for at in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_is_dropped_or_pasted(served, open_page, kind):
    page = ready(open_page(served.url))
    content = world.png_bytes(world.scene("development", 5))
    page.evaluate(
        """([kind, bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], kind + ".png", { type: "image/png" }));
          const event = kind === "drop"
            ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
          document.getElementById("drop").dispatchEvent(event);
        }""",
        [kind, list(content)],
    )
    until(page, f"document.getElementById('preview').alt.endsWith('{kind}.png')")
    caption(page)
    assert served.models["before"].questions[-1].image == content


def test_a_large_photograph_is_scaled_down_before_it_is_sent(served, open_page, tmp_path):
    page = ready(open_page(served.url))
    Image.new("RGB", (4000, 3000), "teal").save(tmp_path / "photo.jpg")
    page.set_input_files("#camera", tmp_path / "photo.jpg")
    until(page, "document.getElementById('preview').alt.endsWith('photo.jpg')")
    caption(page)
    sent = Image.open(io.BytesIO(served.models["before"].questions[-1].image))
    assert (sent.format, sent.size) == ("JPEG", (1536, 1152))


def test_a_new_scene_is_drawn_and_captioned(served, open_page):
    page = ready(open_page(served.url))
    page.click("#scene")
    until(page, "Number(document.getElementById('preview').alt.split('-').pop()) >= 100000")
    scene_id = page.locator("#preview").get_attribute("alt").rpartition(" ")[2]
    caption(page)
    assert served.models["after"].questions[-1].image == world.png_bytes(world.scene_from_id(scene_id))


def test_sentences_have_scores_shades_and_marks(served, open_page):
    page = ready(open_page(served.url))
    page.locator("#samples button").nth(1).click()
    caption(page)
    assert page.locator("#text-0 .sentence").count() == BEFORE.count(".")
    unique = [text for text in page.locator("#text-0 .unique").all_inner_texts() if "only here" in text]
    assert len(unique) == 3
    assert page.locator("#text-1 .unique").count() == 1
    title = page.locator("#text-0 .sentence").first.get_attribute("title")
    assert re.fullmatch(r"CLIP( cosine)? × 100: [0-9.]+", title)
    assert page.locator("#text-0 .s1, #text-0 .s5").count() > 0
    scene = world.scene("test", 1)
    present = {item.name for item in scene.objects}
    expected = {word for word in ("cup", "chair", "piano", "kettle") if word not in present}
    struck = {re.sub(r" \(absent\)", "", text) for text in page.locator("#text-0 s").all_text_contents()}
    assert struck == expected
    assert "mean" in page.locator("#facts-0").inner_text()
    assert re.search(r"first text after [0-9.]+ s", page.locator("#facts-0").inner_text())
    assert page.locator("#legend li").count() >= 7


def test_the_dial_takes_the_caption_away_from_the_picture(served, open_page):
    page = ready(open_page(served.url))
    page.locator("#ratio").fill("0.75")
    assert page.locator("#ratio-value").inner_text() == "0.75"
    caption(page)
    assert spoken(page, 0) == UNSEEN
    assert served.models["before"].questions[-1].ratio == 0.75
    page.click("#strip")
    until(page, "document.querySelectorAll('#strip-list .sentence').length >= 15")
    texts = page.locator("#strip-list .caption").all_inner_texts()
    assert len(texts) == 5
    assert ["beach" in text for text in texts] == [False, False, True, True, True]


def test_stop_ends_the_stream_and_keeps_the_text(shown_run, open_page):
    with serving(shown_run, pause=0.15) as slow:
        page = ready(open_page(slow.url))
        page.click("#go")
        until(page, "document.getElementById('text-0').textContent.length > 10")
        page.click("#stop")
        until(page, "document.getElementById('status').textContent === 'Stopped.'")
        assert 0 < len(spoken(page, 0)) < len(BEFORE)
        assert page.locator("#go").is_enabled()
        deadline = time.monotonic() + 5
        while not all(model.cancelled for model in slow.models.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert all(model.cancelled for model in slow.models.values())


def test_another_seed_is_sent_and_shared_in_the_address(served, open_page):
    page = ready(open_page(served.url))
    page.locator("#samples button").nth(2).click()
    page.click("#reseed")
    until(page, DONE)
    asked = served.models["after"].questions[-1]
    assert asked.temperature == 1.0
    link = page.url
    assert f"seed={asked.seed}" in link
    assert "base64" not in link
    other = ready(open_page(served.url, link.removeprefix(served.url)))
    until(other, "!document.getElementById('preview').hidden")
    assert other.locator("#seed").input_value() == str(asked.seed)
    assert other.locator("#samples button").nth(2).get_attribute("aria-pressed") == "true"
    page.click("#copy-curl")
    page.wait_for_selector("#copy-part:visible")
    assert "/v1/compare" in page.locator("#copy-text").input_value()


def test_a_wrong_key_is_refused_in_words_and_the_right_one_is_asked_once(locked, open_page):
    watched = open_page(locked.url)
    page = watched.page
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    until(page, "document.getElementById('key-why').textContent.includes('refused this key')")
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    ready(watched)
    caption(page)
    page.click("#nav-runs")
    page.wait_for_selector("#stages tr")
    assert not page.locator("#key-dialog").is_visible()
    assert page.evaluate("localStorage.length") == 0


def test_a_server_that_is_gone_is_said_in_words(shown_run, open_page):
    with serving(shown_run) as gone:
        page = ready(open_page(gone.url))
        gone.stop()
        page.click("#go")
        page.wait_for_selector("#error:visible")
        assert "The server does not answer. Check that it runs" in page.locator("#error").inner_text()
        assert page.locator("#go").is_enabled()


def test_a_connection_that_breaks_while_captions_come_is_said_in_words(shown_run, open_page):
    with serving(shown_run, pause=0.3) as gone:
        page = ready(open_page(gone.url))
        page.click("#go")
        until(page, "document.getElementById('text-0').textContent.length > 5")
        gone.stop()
        page.wait_for_selector("#error:visible")
        assert "The connection was lost while the captions were written" in page.locator("#error").inner_text()
        assert spoken(page, 0)


def test_a_file_that_is_no_picture_is_refused_in_words(served, open_page, tmp_path):
    page = ready(open_page(served.url))
    (tmp_path / "notes.png").write_text("hello")
    page.set_input_files("#file", tmp_path / "notes.png")
    page.wait_for_selector("#error:visible")
    assert "Choose a PNG, JPEG or WebP file" in page.locator("#error").inner_text()


def test_everything_works_with_the_keyboard_alone(served, open_page):
    page = ready(open_page(served.url))
    reached = set()
    for _ in range(45):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if page.evaluate("document.activeElement.id") == "go":
            page.keyboard.press("Enter")
            break
    until(page, DONE)
    assert {"file", "camera", "scene", "sample", "left", "right", "ratio", "views", "temperature", "seed"} <= reached


@pytest.mark.parametrize("path", ["/", "/runs"])
def test_a_phone_needs_no_sideways_scrolling(served, open_page, path):
    watched = open_page(served.url, path, viewport=PHONE, device_scale_factor=2, has_touch=True)
    page = watched.page
    if path == "/":
        ready(watched)
        caption(page)
        boxes = [page.locator(f"#text-{at}").bounding_box() for at in (0, 1)]
        assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    else:
        page.wait_for_selector("#stages tr")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_run_is_shown_with_its_stages_curves_failures_and_pairs(served, open_page):
    page = open_page(served.url, "/runs").page
    page.wait_for_selector("#stages tr")
    assert "pairs" in page.locator("#stages").inner_text()
    assert "3 rows of samples: undecodable" in page.locator("#failures").inner_text()
    assert page.locator("#curves svg").count() >= 4
    assert page.locator("#pairs img").count() == 3
    assert "h = 0.00" in page.locator("#pairs").inner_text()
    assert str(served.run.folder.path) not in page.content()


def test_a_run_is_followed_while_it_works(shown_run, open_page, tmp_path):
    shutil.copytree(shown_run.folder.path, tmp_path / "working")
    run = Run.existing(str(tmp_path / "working"))
    run.stage(1, "pairs").remove("_manifest.json")
    progress = {"rows": 30, "rows_in_all": 60, "rows_per_second": 2.5, "seconds_left": 12.0, "actors": 3}
    update_record(run, status="running", stages={"round-1": {"pairs": {"status": "running", "progress": progress}}})
    with Lease(run.folder), serving(run) as served:
        page = open_page(served.url, "/runs").page
        page.wait_for_selector("tr.running progress")
        row = page.locator("tr.running").inner_text()
        assert [words in row for words in ("30 / 60", "2.5", "12.0 s left")] == [True] * 3
        update_record(run, status="done", stages={"round-1": {"pairs": {"status": "done", "rows_out": 60}}})
        until(page, "document.getElementById('state').textContent.startsWith('done')")
        assert page.locator("tr.running").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/runs"])
def test_axe_finds_no_serious_fault(served, open_page, path, scheme):
    if not AXE.is_file():
        pytest.skip(f"needs axe-core: `make .cache/browser/.synced` with npm writes {AXE.relative_to(ROOT)}")
    watched = open_page(served.url, path, color_scheme=scheme)
    page = watched.page
    if path == "/":
        ready(watched)
        caption(page)
        page.click("#strip")
        until(page, "document.querySelectorAll('#strip-list .sentence').length >= 15")
    else:
        page.wait_for_selector("#stages tr")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"[0-9]+", background)[:3])) < 200) == (scheme == "dark")
    page.evaluate(AXE.read_text(encoding="utf-8"))  # by the protocol, which the content security policy does not bind
    found = page.evaluate("axe.run()")["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in serious] == []


def test_streaming_never_blocks_the_main_thread(shown_run, open_page, chromium):
    """No task of the page's main thread takes 50 ms of CPU time; wall time would measure the machine's other load."""
    with serving(shown_run, pause=0.004) as fast:
        for model in fast.models.values():
            model.text = " ".join([model.text] * 8)
        page = ready(open_page(fast.url))
        chromium.start_tracing(page=page, categories=["toplevel", "disabled-by-default-devtools.timeline"])
        caption(page)
        trace = json.loads(chromium.stop_tracing())["traceEvents"]
    main = {
        (event["pid"], event["tid"])
        for event in trace
        if event.get("name") == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    spent = [event["tdur"] for event in trace if (event["pid"], event["tid"]) in main and "tdur" in event]
    assert len(spent) > 100
    assert max(spent) < 50_000  # microseconds


def test_the_files_of_the_page_are_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.suffix in (".html", ".css", ".js")) <= 60 * 1024


def test_the_policy_allows_no_other_script(served, open_page):
    watched = open_page(served.url)
    page = ready(watched)
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.bad=1'}))"
    )
    assert page.evaluate("window.bad") is None
    assert any("Content Security Policy" in problem for problem in watched.problems)
    watched.problems.clear()
