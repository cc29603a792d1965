"""Votes, and what the page gives to take along, in a real browser."""

import json
import subprocess

from PIL import Image

from jsfree.config import with_overrides
from jsfree.miniworld import world
from jsfree.monitor.votes import read_votes
from jsfree.run.run import Run
from tests.serve.page.conftest import serving
from tests.serve.page.test_browser import caption, ready, spoken, until
from tests.support.recorded import AFTER, BEFORE


def test_a_blind_vote_hides_the_names_until_it_is_cast(served, open_page):
    page = ready(open_page(served.url))
    page.check("#blind")
    caption(page)
    assert page.locator("#columns h3").all_inner_texts() == ["The first", "The second"]
    assert page.locator("#columns .sentence").count() == 0
    preferred = 0 if spoken(page, 0) == AFTER else 1
    before = len(read_votes(served.run))
    page.click(f"#vote-{preferred}")
    until(page, "document.getElementById('tally').textContent.includes('m1')")
    vote = read_votes(served.run)[-1]
    assert len(read_votes(served.run)) == before + 1
    assert (vote.winner, vote.loser, vote.tie) == ("m1", "m0", False)
    assert set(page.locator("#columns h3").all_inner_texts()) == {"m0", "m1"}
    assert page.locator("#columns .sentence").count() > 0


def upload(page, content: bytes, file) -> None:
    """Choose a picture of one's own, whose contents the page does not know."""
    file.write_bytes(content)
    page.set_input_files("#file", file)
    until(page, f"document.getElementById('preview').alt.endsWith('{file.name}')")


def test_no_words_are_struck_by_another_picture_than_the_captioned_one(served, open_page, tmp_path):
    page = ready(open_page(served.url))
    upload(page, world.png_bytes(world.scene("development", 3)), tmp_path / "mine.png")
    page.check("#blind")
    caption(page)
    page.locator("#samples button").nth(1).click()
    page.click("#vote-tie")
    until(page, "document.querySelectorAll('#columns .sentence').length > 0")
    assert page.locator("#columns s").count() == 0


def test_a_vote_is_not_offered_once_its_captions_are_replaced(served, open_page):
    page = ready(open_page(served.url))
    page.check("#blind")
    caption(page)
    assert page.locator("#vote").is_visible()
    page.click("#strip")
    until(page, "document.querySelectorAll('#strip-list .sentence').length >= 15")
    assert not page.locator("#vote").is_visible()
    caption(page)
    before = len(read_votes(served.run))
    page.click("#vote-tie")
    until(page, "document.getElementById('status').textContent.startsWith('Thank you')")
    assert len(read_votes(served.run)) == before + 1


def test_the_copied_curl_command_sends_a_large_picture(shown_run, open_page, tmp_path):
    run = Run(with_overrides(shown_run.config, ["prompt=What's an IMAGE of 100 %s?"]))
    Image.effect_noise((512, 512), 100).save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 150_000
    with serving(run) as served:
        page = ready(open_page(served.url))
        page.click("#copy-curl")
        page.wait_for_selector("#copy-part:visible")
        command = page.locator("#copy-text").input_value()
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    compared = json.loads(done.stdout)
    assert [caption["text"] for caption in compared["captions"]] == [BEFORE, AFTER]
    asked = served.models["after"].questions[-1]
    assert (asked.prompt, asked.image) == (run.config.prompt, (tmp_path / "picture.png").read_bytes())
