"""The page in a real browser: what a user sees and does there."""

import io
import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid import Attribution, States
from pellucid.recorder import save_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a Chromium browser on the path")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, states, tmp_path):
    """The page of a map with marks and explanations of two points, open; and what it asked for and complained of."""
    finite = replace(states, values=states.values.nan_to_num(0.5))
    made = replace(finite.project("pca"), marks=tuple("prototype" if place == 5 else "" for place in range(20)))
    maps = Attribution(torch.randn(2, 3, 8, 8), inputs=torch.rand(2, 3, 8, 8))
    path = save_page(
        made, finite, tmp_path / "map.html", colours={"age": torch.arange(20.0)}, explanations={"why": maps},
        at={"why": [4, 9]},
    )  # fmt: skip
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.set_default_timeout(10_000)
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri())
    yield page
    assert not wrong
    assert all(url.startswith(("file:", "data:")) for url in asked)
    page.close()


def point(page, index):
    """Where a point is in the window now."""
    box = page.locator("#map").bounding_box()
    x, y = page.evaluate(f"place({index}, time).map(v => v / canvas.width)")
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def drawn(page):
    with Image.open(io.BytesIO(page.locator("#map").screenshot())) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_slider_goes_through_the_captures(opened):
    assert opened.locator("#step").text_content() == "step 0"
    start = drawn(opened)
    assert (start != 255).any(axis=2).mean() > 0.005
    slider = opened.locator("#time")
    slider.fill("2")
    assert opened.locator("#step").text_content() == "step 4"
    assert (drawn(opened) != start).any()
    slider.press("ArrowRight")
    assert float(slider.input_value()) > 2


def test_play_runs_to_the_end_and_can_be_stopped(opened):
    play = opened.locator("#play")
    play.click()
    assert play.text_content() == "Pause"
    opened.wait_for_function("document.getElementById('step').textContent === 'step 4'")
    play.click()
    assert play.text_content() == "Play"
    stopped = opened.locator("#time").input_value()
    opened.wait_for_timeout(100)
    assert opened.locator("#time").input_value() == stopped
    play.click()
    opened.wait_for_function("document.getElementById('play').textContent === 'Play'")
    assert opened.locator("#step").text_content() == "step 9"


def test_hovering_shows_picture_label_prediction_and_history(opened, states):
    opened.locator("#time").fill("1")
    opened.mouse.move(*point(opened, 7))
    said = opened.locator("#point").text_content()
    shown = opened.evaluate("hovered")  # whichever lies on top there
    name = states.classes
    assert f"</script><b>{shown}</b>, label {name[shown % 3]}" in said
    assert f"predicted {name[int(states.predictions[1, shown])]}" in said
    rows = opened.locator("#point tr")
    assert rows.count() == 5
    assert rows.nth(2).get_attribute("class") == "now"
    losses = [row.split()[-1] for row in rows.all_inner_texts()[1:]]
    assert [float(loss) for loss in losses] == pytest.approx(states.losses[:, shown].tolist(), rel=1e-2)
    assert opened.locator("#point .picture").evaluate("box => getComputedStyle(box).backgroundImage").startswith("url")
    opened.mouse.move(5, 5)
    assert "Hover over a point" in opened.locator("#point").text_content()


def test_selecting_a_point_leads_to_its_explanations(opened):
    opened.mouse.click(*point(opened, 9))
    if opened.evaluate("pinned") != 9:  # another lies on top of it
        opened.evaluate("pinned = 9; render()")
    opened.mouse.move(5, 5)
    assert "why" in opened.locator("#point figure").text_content()
    tile = opened.locator("#point .sheet0")
    assert tile.evaluate("box => getComputedStyle(box).backgroundPosition") == "-112px 0px"
    assert tile.evaluate("box => getComputedStyle(box).backgroundImage").startswith('url("data:image/png')
    opened.evaluate("pinned = 3; render()")
    assert opened.locator("#point figure").count() == 0
    assert opened.evaluate("rims.map((rim, k) => rim ? k : -1).filter(k => k >= 0)") == [4, 9]


def test_every_colour_colours_and_is_explained_by_the_key(opened):
    choice, key, pictures = opened.locator("#colour"), opened.locator("#key"), []
    names = ["label", "prediction", "loss", "learned at step", "times forgotten", "age", "mark"]
    assert choice.locator("option").all_inner_texts() == names
    for name in names:
        choice.select_option(name)
        pictures.append(drawn(opened))
        said = key.text_content()
        assert "prototype" in said
        assert ("bee" in said) == (name in ("label", "prediction"))
        assert ("low" in said) == (name in ("loss", "learned at step", "times forgotten", "age"))
    for one, other in itertools.pairwise(pictures):
        assert (one != other).any()


def test_a_run_that_diverged_says_so_and_an_address_opens_the_page_at_a_place(browser, states, tmp_path):
    path = save_page(states.project("pca"), states, tmp_path / "map.html")
    page = browser.new_page()
    page.goto(f"{path.as_uri()}#time=2&point=4&colour=prediction")
    assert page.locator("#step").text_content() == "step 4"
    assert page.locator("#colour").input_value() == "prediction"
    assert "label bee" in page.locator("#point").text_content()
    alive = drawn(page)
    page.locator("#time").fill("3")
    assert (drawn(page) != alive).any()
    assert page.evaluate("place(0, 3)") is None
    page.close()


def test_a_small_window_keeps_the_map_square_and_finds_points(browser, states, tmp_path):
    path = save_page(states.project("pca"), states, tmp_path / "map.html", colours={"pull": torch.arange(20.0) - 10})
    page = browser.new_page(viewport={"width": 420, "height": 800})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{path.as_uri()}#point=-1&colour=pull")
    box = page.locator("#map").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.mouse.move(*point(page, 7))
    hovered = page.evaluate("hovered")
    assert page.evaluate(f"Math.hypot(...place({hovered}, 0).map((v, k) => v - place(7, 0)[k]))") < 10
    assert page.evaluate("new Set([0, 5, 15].map(colourOf)).size") == 3  # numbers below zero have their colours too
    assert "low -10" in page.locator("#key").text_content()
    assert not wrong
    page.close()


def test_a_few_named_points_have_their_own_colours(browser, states, tmp_path):
    few = States(torch.rand(3, 4, 5), states.steps[:3], names=tuple("abcd"))
    page = browser.new_page()
    page.goto(save_page(few.project("pca"), few, tmp_path / "map.html").as_uri())
    assert page.locator("#key").text_content() == "abcd"
    assert page.evaluate("new Set([0, 1, 2, 3].map(colourOf)).size") == 4
    page.close()
