"""What a person sees in MLflow's own web page, in headless Chromium: the table of runs, two compared, virtual hours.

Screenshots lie in the folder ATOLL_SCREENSHOTS, `screenshots` in the repository if unset, for whoever looks at them
later; the tests read what the page says and draws, never its pixels.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atoll.tracking import MlflowTracker, Row, RunInfo, page_url, preflight, ui

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
SCREENSHOTS = Path(os.environ.get("ATOLL_SCREENSHOTS") or Path(__file__).parents[2] / "screenshots")
#: metric → value at a step, of a run that is `slow` times as slow in virtual time
KEYS = {
    "eval/auc": lambda step, slow: 0.5 + 0.03 * step**0.5,
    "train/loss": lambda step, slow: 0.7 - 0.02 * step**0.5,
    "sim/hours": lambda step, slow: 0.01 * slow * step,
}
STEPS = 50
RUNS = {"fedbuff-on-screen": 1.0, "fedavg-on-screen": 2.5}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromium-driver"),
    pytest.mark.filterwarnings("default"),
]


@dataclass
class Site:
    """A server, and the two runs that it shows."""

    url: str
    experiment_id: str
    run_ids: dict[str, str]


@pytest.fixture(scope="module")
def site(_mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(_mlflow_template, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    run_ids = {}
    for name, slow in RUNS.items():
        tracker = MlflowTracker(uri)
        run_ids[name] = tracker.start(RunInfo("browser-test", name, name, params={"client.lr": "0.1", "arm": name}))
        tracker.publish(
            [
                Row(key, step, value(step, slow), 1_700_000_000_000 + step)
                for key, value in KEYS.items()
                for step in range(STEPS)
            ]
        )
        tracker.finish("FINISHED")
    command = ui(uri)
    # its own session, so that the workers it starts end with it
    server = subprocess.Popen(
        command.argv,
        env={**os.environ, **command.env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: urllib.request.urlopen(f"{command.url}/health", timeout=2).close() is None, 90)
        preflight(command.url)
        yield Site(command.url, tracker.experiment_id, run_ids)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def wait_until(check, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except Exception:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.3)


class Browser:
    """Opens pages, reads them, clicks, and keeps a picture of each."""

    def __init__(self, driver: Any) -> None:
        self.driver, self._is_wide = driver, False

    def open(self, url: str) -> None:
        self.driver.get("about:blank")  # addresses that differ behind the # alone would keep the page
        self.driver.get(url)
        if not self._is_wide:  # MLflow's assistant covers a quarter of the page until it is closed, once
            self.click("[data-component-id='mlflow.assistant.chat_panel.close']")
            self._is_wide = True

    def text(self) -> str:
        return self.script("return document.body.innerText")

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def shows(self, *words: str) -> None:
        wait_until(lambda: all(word in self.text() for word in words))

    def click(self, selector: str) -> None:
        """Clicks the first element that the CSS selector finds, once it is there, as a mouse does."""
        from selenium.webdriver import ActionChains

        found = "document.querySelector(arguments[0])"
        wait_until(lambda: self.script(f"{found}?.scrollIntoView({{block: 'center'}}); return !!{found}", selector))
        element = self.script(f"return {found}", selector)
        ActionChains(self.driver).move_to_element(element).pause(0.2).click().perform()

    def charts(self) -> list[dict[str, Any]]:
        """Of every chart: titles of its axes, and per line its name and its points."""
        return self.script(
            "return [...document.querySelectorAll('.js-plotly-plot')].filter(one => one.data).map(one => ({"
            "x: one.layout.xaxis?.title?.text ?? '', y: one.layout.yaxis?.title?.text ?? '',"
            "lines: one.data.filter(line => line.x).map(line => ({"
            "name: line.name ?? '', x: Array.from(line.x), y: Array.from(line.y)}))}))"
        )

    def keep(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        assert self.driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1700,1300",
    ):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield Browser(opened)
    opened.quit()


def test_the_table_of_runs(site: Site, browser: Browser) -> None:
    browser.open(page_url(site.url, site.experiment_id))
    browser.shows("browser-test", *RUNS)
    browser.keep("mlflow-runs")


def test_a_run_shows_its_metrics_and_draws_their_charts(site: Site, browser: Browser) -> None:
    name = "fedbuff-on-screen"
    page = page_url(site.url, site.experiment_id, site.run_ids[name])
    browser.open(page)
    browser.shows(name, "client.lr", *KEYS)
    browser.keep("mlflow-run")
    browser.open(page.replace("?", "/model-metrics?"))
    wait_until(lambda: len([chart for chart in browser.charts() if chart["lines"]]) >= len(KEYS))
    browser.keep("mlflow-run-charts")


def test_two_runs_compared(site: Site, browser: Browser) -> None:
    ids = ",".join(f'"{run_id}"' for run_id in site.run_ids.values())
    browser.open(f'{site.url}/#/compare-runs?runs=[{ids}]&experiments=["{site.experiment_id}"]')
    browser.shows("Comparing 2 Runs", *RUNS, "client.lr", *KEYS)
    wait_until(lambda: browser.script("return document.querySelectorAll('.js-plotly-plot .parcoords').length"))
    browser.keep("mlflow-compare")


def test_virtual_hours_as_x_axis(site: Site, browser: Browser) -> None:
    """The same quality, drawn against the metric that is logged for that: the slower run's line is as much longer."""
    table = page_url(site.url, site.experiment_id).replace("?", "/runs?")
    browser.open(f"{table}&compareRunsMode=CHART")
    wait_until(lambda: any(line["name"] in RUNS for chart in browser.charts() for line in chart["lines"]))
    browser.script(
        "[...document.querySelectorAll(\"[data-testid='experiment-view-compare-runs-card']\")]"
        ".find(one => one.innerText.includes('eval/auc')).id = 'the-card'"
    )
    browser.click("#the-card [data-testid='experiment-view-compare-runs-card-menu']")
    browser.click("[data-testid='experiment-view-compare-runs-card-edit']")
    browser.click("[role=dialog] input[type=radio][value=metric]")
    browser.click("[role=dialog] label [class*=select-selector]")
    browser.click("[data-testid='metric-sim/hours']")
    browser.click("[data-testid='experiment-view-compare-runs-chart-modal-confirm']")

    def drawn() -> dict[str, Any]:
        return next((chart for chart in browser.charts() if chart["x"] == "sim/hours"), {})

    wait_until(lambda: {line["name"] for line in drawn().get("lines", ())} == set(RUNS))
    for line in drawn()["lines"]:
        slow = RUNS[line["name"]]
        assert line["x"] == pytest.approx([KEYS["sim/hours"](step, slow) for step in range(STEPS)])
        assert line["y"] == pytest.approx([KEYS["eval/auc"](step, slow) for step in range(STEPS)])
    wait_until(lambda: not browser.script("return !!document.querySelector('[role=dialog]')"))
    browser.keep("mlflow-virtual-hours")
