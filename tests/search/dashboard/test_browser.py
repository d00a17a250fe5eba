"""The dashboard in a real browser: a list of studies, and a study that explains its commit."""

import html
import json
import re
import runpy
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.dashboard.noting import complete
from search.dashboard.serving import serving
from search.store import Store

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium on the path (none of {', '.join(BROWSERS)})")
    return found


def visit(browser: str, folder: Path, address: str, *arguments: str, patience: int = 5) -> str:
    """What the page has become after so many seconds of its own time, as text and tags."""
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,2400",
        f"--virtual-time-budget={1000 * patience}",
        *(arguments or ("--dump-dom",)),
        address,
    ]
    return html.unescape(subprocess.run(command, capture_output=True, text=True, timeout=280, check=True).stdout)


def test_the_page_of_a_study_shows_figure_winner_and_files(
    browser: str, empty: Store, with_tensors: Callable[[Store], str], tmp_path: Path
) -> None:
    with_tensors(empty)
    complete(empty, "run", tell=lambda _: None)
    with serving(empty) as address:
        page = visit(browser, tmp_path, f"{address}/studies/1")
    assert "run/replica-0/task-00" in page
    figure = page[page.index("user-defined-plot:accuracy-units") :]
    assert "Task 1, replica 1: 4 trials; trial 0 wins" in figure
    assert "cut line 60.00 %" in figure
    assert 'class="scatterlayer' in figure
    assert "run-replica1-task1-commit.safetensors" in page
    assert "winner cell" in page


@pytest.mark.slow
def test_notes_are_shown_as_markdown(
    browser: str, empty: Store, with_tensors: Callable[[Store], str], tmp_path: Path
) -> None:
    with_tensors(empty)
    complete(empty, "run", tell=lambda _: None)
    with serving(empty) as address:
        note = visit(browser, tmp_path, f"{address}/studies/1/note")
        winner = visit(browser, tmp_path, f"{address}/studies/1/trials?numbers=0")
    assert re.search(r'<strong><a href="/dashboard/studies/1/trials\?numbers=0">trial 0</a> wins</strong>', note)
    assert "<table>" in note
    assert "<strong>Winner</strong> of run <code" in winner


@pytest.mark.slow
def test_a_list_of_a_thousand_runs_opens(browser: str, store: Store, tmp_path: Path, fetch: Any) -> None:
    """100,000 trials, every commit with its note, on both databases; the times are in the README of the benchmarks."""
    scale = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "scale.py")))
    scale.record(store, scale.make_experiment())
    complete(store, scale.TEMPLATE, tell=lambda _: None)
    scale.copy(store, 999)
    with serving(store) as address:
        begin = time.monotonic()
        studies = json.loads(fetch(address, "/api/studies").text)["study_summaries"]
        seconds = time.monotonic() - begin
        print(f"{store.database.dialect}: {len(studies):,} studies in {seconds:.2f} s")
        begin = time.monotonic()
        assert fetch(address, f"/api/studies/{studies[-1]['study_id']}").status == 200
        print(f"one of them in {time.monotonic() - begin:.2f} s")
        begin = time.monotonic()
        picture = tmp_path / "list.png"
        visit(browser, tmp_path, address, f"--screenshot={picture}", patience=60)
        print(f"the list in a browser in {time.monotonic() - begin:.1f} s")
        page = visit(browser, tmp_path, address, patience=60)
    assert len(studies) > 5000
    assert page.count("Direction: MAXIMIZE") == len(studies)
    assert picture.stat().st_size > 20_000
    assert seconds < 10
