"""Pages in headless Chromium: opened from disk, drawn, sorted, zoomed, on a phone, in the dark, and by axe-core."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flrl.reporting import runs_in, sweep_page, write_page
from flrl.train import main as train
from tests.reporting.conftest import command_line, data_of, rows_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def sweep(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three jobs of which each has other numbers and takes another strategy; `test_report.py` has a real sweep."""
    folder = tmp_path_factory.mktemp("jobs")
    for job, strategy in enumerate(("fedavg", "fedprox", "moon")):
        copy = Path(shutil.copytree(run, folder / str(job)))
        rows = [
            {**row, "test/accuracy": ((job + 1) % 3) / 3 * row["round"] / 4} for row in rows_of(copy / "metrics.jsonl")
        ]
        (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (start,) = rows_of(copy / "environments.jsonl")
        start["overrides"] = [f"strategy={strategy}"]
        (copy / "environments.jsonl").write_text(json.dumps(start) + "\n")
    write_page(folder / "index.html", sweep_page(folder, runs_in(folder)))
    return folder


class Opened:
    """A page that is open, with what it has asked for and complained of."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1200, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("path.series")
        self.page.wait_for_function("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('svg'))")
        self.page.wait_for_function("[...document.images].every(image => image.complete)")

    def script(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def draws(self, number: int) -> None:
        """Wait until so many series are drawn; charts are drawn once the browser has laid them out."""
        self.page.wait_for_function(f"document.querySelectorAll('path.series').length == {number}")


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    pages: list[Opened] = []

    def open_page(path: Path, **options: Any) -> Opened:
        pages.append(Opened(browser, path, **options))
        return pages[-1]

    yield open_page
    for each in pages:
        each.page.close()


def test_it_opens_from_disk_and_draws_every_series(opened: Any, run: Path) -> None:
    there = opened(run / "report.html")
    charts = data_of(run / "report.html")["charts"]
    lines = sum(len(chart["series"]) for chart in charts if chart["kind"] == "line")
    bars = sum(len(chart["series"]) for chart in charts if chart["kind"] == "stack")
    assert there.complaints == []
    assert [url for url in there.requests if not url.startswith("data:")] == [(run / "report.html").as_uri()]
    assert there.script("document.querySelectorAll('path.series').length") == lines > 10
    assert there.script("document.querySelectorAll('path.bars').length") == bars == 10 + 2
    drawn = "[...document.querySelectorAll('path.series, path.bars')].filter(p => p.getBBox().width > 0).length"
    assert there.script(drawn) == lines + bars
    dashes = [
        line.get_attribute("stroke-dasharray") for line in first_chart(there, "loss").locator("path.series").all()
    ]
    assert dashes == ["", "7 4"]
    assert there.script("document.title") == "a<b>&c: report"
    assert not there.script("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")


def first_chart(there: Opened, title: str) -> Any:
    return there.page.locator("figure", has=there.page.locator("figcaption", has_text=title)).first


def test_values_can_be_read_by_mouse_and_keyboard(opened: Any, run: Path) -> None:
    there = opened(run / "report.html")
    chart = first_chart(there, "test/accuracy")
    rows = rows_of(run / "metrics.jsonl")
    chart.locator(".plot").hover()
    assert "test/accuracy: " in chart.locator(".tip").first.inner_text()
    chart.locator(".plot").focus()
    there.page.keyboard.press("Home")
    for row in rows[:3]:
        value = f"{row['test/accuracy']:.5g}"
        assert chart.locator("[role=status]").text_content() == f"round {row['round']}, test/accuracy: {value}"
        there.page.keyboard.press("ArrowRight")


def test_zoom_by_dragging_and_by_keyboard(opened: Any, run: Path) -> None:
    there = opened(run / "report.html")
    chart = first_chart(there, "test/accuracy")
    line = chart.locator("path.series")
    before = line.get_attribute("d")
    chart.scroll_into_view_if_needed()
    box = chart.locator(".plot").bounding_box()
    reset = chart.get_by_role("button", name="Reset zoom")
    assert not reset.is_visible()
    there.page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 60)
    there.page.mouse.down()
    there.page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 90)
    there.page.mouse.up()
    assert line.get_attribute("d") != before
    reset.click()
    assert line.get_attribute("d") == before
    chart.locator(".plot").focus()
    there.page.keyboard.press("+")
    assert line.get_attribute("d") != before
    there.page.keyboard.press("0")
    assert line.get_attribute("d") == before


def test_a_series_can_be_switched_off_and_read_as_a_table(opened: Any, run: Path) -> None:
    there = opened(run / "report.html")
    chart = first_chart(there, "loss")
    key = chart.get_by_role("button", name="train/loss")
    key.click()
    chart.locator("path.series").nth(1).wait_for(state="detached")
    assert (chart.locator("path.series").count(), key.get_attribute("aria-pressed")) == (1, "false")
    key.click()
    chart.locator("path.series").nth(1).wait_for(state="attached")
    assert chart.locator("path.series").count() == 2
    chart.locator("summary").click()
    chart.locator("td").first.wait_for()
    cells = chart.locator("td").all_inner_texts()
    assert len(cells) == 8
    assert float(cells[0]) == pytest.approx(rows_of(run / "metrics.jsonl")[0]["test/loss"], rel=1e-4)


def test_a_sweep_sorts_and_draws_what_is_chosen(opened: Any, sweep: Path) -> None:
    there = opened(sweep / "index.html")
    assert there.complaints == []
    head = there.page.locator("th", has_text="test/accuracy").first
    column = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[2].dataset.value)"
    assert [float(value) for value in there.script(column)] == [1 / 3, 2 / 3, 0]
    head.locator("button").click()
    assert [float(value) for value in there.script(column)] == [0, 1 / 3, 2 / 3]
    assert head.get_attribute("aria-sort") == "ascending"
    there.page.keyboard.press("Enter")
    assert [float(value) for value in there.script(column)] == [2 / 3, 1 / 3, 0]
    assert head.get_attribute("aria-sort") == "descending"
    there.draws(3)
    there.page.locator("#metric").select_option("train/loss")
    assert there.script("document.querySelector('figcaption').textContent") == "train/loss"
    there.draws(3)
    with there.page.expect_navigation():
        there.page.locator("a", has_text="0").first.click()
    assert there.page.title() == "a<b>&c: report"


def test_nothing_is_wider_than_a_phone(opened: Any, run: Path, sweep: Path) -> None:
    for path in (run / "report.html", sweep / "index.html"):
        there = opened(path, width=360)
        there.script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert there.script("document.documentElement.scrollWidth") <= 360


def test_the_dark_has_colours_of_its_own(opened: Any, run: Path) -> None:
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    assert opened(run / "report.html", scheme="dark").script(colours) == ["rgb(13, 17, 23)", "rgb(230, 237, 243)"]
    assert opened(run / "report.html").script(colours) == ["rgb(255, 255, 255)", "rgb(27, 31, 36)"]


def test_axe_finds_nothing_serious(opened: Any, run: Path, sweep: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    contrast = {"runOnly": ["color-contrast"]}
    for path, scheme, options in (
        (run / "report.html", "light", {}),
        (run / "report.html", "dark", contrast),
        (sweep / "index.html", "light", {}),
    ):
        there = opened(path, scheme=scheme)
        there.script("document.querySelectorAll('figure:first-child details').forEach(d => { d.open = true; })")
        found = Axe().run(there.page, options=options).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in SERIOUS] == []


@pytest.mark.slow
def test_a_hundred_rounds_of_a_hundred_clients_open_at_once(browser: Any, tmp_path: Path) -> None:
    with command_line(
        "partition=dirichlet", "partition.num_clients=100", "strategy.rounds=100", "log_clients=true", "holdout=0.2",
        "evaluation.clients_every=1", "logger=none", f"hydra.run.dir={tmp_path / 'run'}",
    ):  # fmt: skip
        train()
    page = tmp_path / "run" / "report.html"
    assert page.stat().st_size < 3_000_000
    begun = time.perf_counter()
    there = Opened(browser, page)
    assert time.perf_counter() - begun < 2
    assert there.complaints == []
    there.page.close()
