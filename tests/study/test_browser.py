"""A whole study in a headless browser: what a worker sees and does."""

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image

try:
    from playwright.sync_api import Browser, Page, expect, sync_playwright
except ModuleNotFoundError:
    pytest.skip("playwright is not installed (extra `dev`)", allow_module_level=True)

from rasterformer.study.store import Store

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
OFF_THE_NETWORK = (
    "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync",
    "--disable-default-apps", "--disable-domain-reliability",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)  # fmt: skip
PATIENCE_MS = 60_000  # of a machine that does other work
expect.set_options(timeout=PATIENCE_MS)
NewStudy = Callable[..., Path]
Serve = Callable[..., AbstractContextManager[object]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OFF_THE_NETWORK))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which nothing may go wrong: no error in a script, nothing that the policy had to stop."""
    page = browser.new_page(viewport={"width": 900, "height": 700})
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
    assert wrong == []


def shown(page: Page, path: Path) -> tuple[int, int]:
    """Grey levels in the middle of the left and the right field, as they are on the screen."""
    screen = Image.open(io.BytesIO(page.screenshot(path=path))).convert("L")
    levels: list[int] = []
    for side in ("left", "right"):
        box = page.locator(f"#{side}-field").bounding_box()
        assert box is not None and (box["width"], box["height"]) == (128, 128)
        level = screen.getpixel((int(box["x"] + 64), int(box["y"] + 64)))
        assert isinstance(level, int)
        levels.append(level)
    return levels[0], levels[1]


def test_a_study_is_done_by_keys_and_buttons(
    page: Page, new_study: NewStudy, serve: Serve, free_port: int, tmp_path: Path
) -> None:
    study = new_study(pairs=3, checks=1, seconds=30)
    # Real images are nearly black, generated ones nearly white: a worker who always points at the dark one is right.
    answers: list[tuple[Callable[[], None], Callable[[], None]]] = [
        (lambda: page.keyboard.press("ArrowLeft"), lambda: page.keyboard.press("ArrowRight")),
        (lambda: page.keyboard.press("f"), lambda: page.keyboard.press("j")),
        (lambda: page.locator("#left").click(), lambda: page.locator("#right").click()),
        (lambda: page.keyboard.press("F"), lambda: page.keyboard.press("J")),
    ]
    with serve(study, free_port):
        page.goto(f"http://127.0.0.1:{free_port}/")
        expect(page.locator("#pairs")).to_have_text("4 pairs")
        page.screenshot(path=tmp_path / "welcome.png")
        page.locator("#start").click()
        sides = []
        for position, (choose_left, choose_right) in enumerate(answers, start=1):
            page.locator("#left:enabled").wait_for()
            assert page.locator("#counter").text_content() == f"{position} of 4"
            left, right = shown(page, tmp_path / f"pair-{position}.png")
            assert abs(left - right) > 200
            sides.append("left" if left < right else "right")
            (choose_left if left < right else choose_right)()
        expect(page.locator("#thanks")).to_be_visible()
        page.screenshot(path=tmp_path / "thanks.png")
    with Store(study) as store:
        votes = store.votes()
    assert [vote.choice for vote in votes] == sides == [vote.real_side for vote in votes]
    assert all(vote.claimed_ms is not None and 0 < vote.claimed_ms < 60_000 for vote in votes)


def test_images_vanish_after_their_time_and_the_answer_may_follow(
    page: Page, new_study: NewStudy, serve: Serve, free_port: int, tmp_path: Path
) -> None:
    study = new_study(pairs=1, checks=0, seconds=1)
    with serve(study, free_port):
        page.goto(f"http://127.0.0.1:{free_port}/")
        page.locator("#start").click()
        page.locator("#left-field img").wait_for()
        expect(page.locator(".field img")).to_have_count(0)
        left, right = shown(page, tmp_path / "hidden.png")
        assert left == right == 182  # the field's own grey, #b9b6b0
        page.keyboard.press("ArrowRight")
        expect(page.locator("#thanks")).to_be_visible()
    with Store(study) as store:
        (vote,) = store.votes()
    assert vote.choice == "right" and vote.claimed_ms is not None and vote.claimed_ms >= 1000


def test_a_reload_goes_on_where_the_worker_was(page: Page, new_study: NewStudy, serve: Serve, free_port: int) -> None:
    study = new_study(pairs=3, checks=0)
    with serve(study, free_port):
        page.goto(f"http://127.0.0.1:{free_port}/")
        page.locator("#start").click()
        expect(page.locator("#left")).to_be_enabled()
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#counter")).to_have_text("2 of 3")
        page.reload()
        expect(page.locator("#start")).to_have_text("Continue")
        expect(page.locator("#pairs")).to_have_text("2 pairs left")
        page.locator("#start").click()
        expect(page.locator("#counter")).to_have_text("2 of 3")
        page.goto("about:blank")  # the next pair is being loaded
    with Store(study) as store:
        assert [vote.position for vote in store.votes()] == [1]
