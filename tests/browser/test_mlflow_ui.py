"""What a person sees: the run's page in MLflow's own web UI, in headless Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request

import pytest

from atoll.tracking import MlflowTracker, Row, RunInfo, page_url, preflight, ui

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromium-driver"),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture
def site(mlflow_uri):
    """A run with metrics, and a server that shows it."""
    tracker = MlflowTracker(mlflow_uri)
    run_id = tracker.start(RunInfo("browser-test", "fedbuff-on-screen", "k", params={"client.lr": "0.1"}))
    tracker.publish(
        [
            Row(key, step, step**0.5 * scale, 1_700_000_000_000 + step)
            for key, scale in KEYS.items()
            for step in range(50)
        ]
    )
    tracker.finish("FINISHED")
    command = ui(mlflow_uri)
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
        yield command.url, tracker.experiment_id, run_id
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


KEYS = {"eval/auc": 0.1, "train/loss": 0.2, "sim/hours": 1.0}


def wait_until(check, seconds):
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


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1500,1300",
    ):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield opened
    opened.quit()


def test_the_run_page_shows_its_metrics_and_draws_their_charts(site, browser, tmp_path):
    def text():
        return browser.execute_script("return document.body.innerText")

    server, experiment_id, run_id = site
    browser.get(page_url(server, experiment_id))
    wait_until(lambda: "fedbuff-on-screen" in text(), 60)
    page = page_url(server, experiment_id, run_id)
    browser.get(page)
    wait_until(lambda: all(word in text() for word in ("fedbuff-on-screen", *KEYS, "client.lr")), 60)
    browser.get(page.replace("?", "/model-metrics?"))
    drawn = "return document.querySelectorAll('.js-plotly-plot .scatterlayer .trace path.js-line').length"
    wait_until(lambda: browser.execute_script(drawn) >= len(KEYS), 60)
    folder = os.environ.get("ATOLL_SCREENSHOTS")
    if folder:
        browser.save_screenshot(os.path.join(folder, "mlflow-run.png"))
