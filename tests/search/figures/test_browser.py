"""The page of a run in a real browser: every figure is drawn, nothing fails, and nothing leaves the file."""

import html
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.cli import main

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

BROWSER_S_OWN = ("google.com", "googleapis.com", "gvt1.com")
"""Where Chromium asks for the time and for updates, whatever page is open."""

FIGURES = ("accuracy", "used", "units", "matrix", "pareto", "grid")

DRAWN = ".scatterlayer .js-line, .scatterlayer .point, .barlayer .point path, .heatmaplayer image"

# Runs before anything else in a page: writes down what goes wrong, draws tasks in turn, and tells its owner what
# is there in the end.
PROBE = """<script>
const seen = { errors: [], tasks: {} };
addEventListener("error", (event) => seen.errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => seen.errors.push("policy: " + event.blockedURI));
console.error = console.warn = (...words) => seen.errors.push(words.join(" "));
const wait = (time) => new Promise((done) => setTimeout(done, time));
function look() {
  const found = {};
  for (const figure of document.querySelectorAll("figure")) {
    found[figure.id] = {
      title: figure.querySelector(".title").textContent,
      drawn: [...figure.querySelectorAll(%s)].filter((part) => part.getBoundingClientRect().width > 0).length,
      width: Math.round(figure.querySelector(".main-svg")?.getBoundingClientRect().width ?? 0),
      buttons: [...figure.querySelectorAll(".modebar-btn")].map((button) => button.dataset.title),
    };
  }
  return found;
}
addEventListener("load", async () => {
  await wait(200);
  seen.figures = look();
  for (const replica of document.querySelectorAll("#replica option")) {
    for (const place of [0, -1]) {
      const [replicas, tasks] = ["replica", "task"].map((name) => document.getElementById(name));
      replicas.value = replica.value;
      replicas.dispatchEvent(new Event("change"));
      tasks.value = [...tasks.options].at(place).value;
      tasks.dispatchEvent(new Event("change"));
      await wait(100);
      const { pareto, grid } = look();
      seen.tasks[`${replicas.value}/${tasks.value}`] = { pareto, grid };
    }
  }
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.width = innerWidth;
  seen.bad = window.bad !== undefined || document.querySelectorAll("img, iframe, link, [src], [href^=http]").length > 0;
  seen.resources = performance.getEntriesByType("resource").map((entry) => entry.name);
  parent.postMessage({ name: window.name, seen }, "*");
});
</script>""" % json.dumps(DRAWN)  # noqa: UP031

FRAMES = """<body><pre id="seen">{}</pre>%s<script>
addEventListener("message", ({ data }) => {
  const place = document.getElementById("seen"), all = JSON.parse(place.textContent);
  all[data.name] = data.seen;
  place.textContent = JSON.stringify(all);
});
</script></body>"""


@pytest.fixture(scope="session")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium on the path (none of {', '.join(BROWSERS)})")
    return found


class Listener:
    """A proxy for all that the browser would fetch: it writes down what is asked for and answers nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(200).decode(errors="replace").split("\r\n")[0])

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()
    yield found
    found.close()


def visit(browser: str, listener: Listener, folder: Path, page: Path, *arguments: str) -> str:
    """The page as the browser has it in the end."""
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-features=NetworkTimeServiceQuerying,OptimizationHints",
        "--no-first-run",
        f"--proxy-server=http://127.0.0.1:{listener.port}",
        "--proxy-bypass-list=<-loopback>",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000",
        "--virtual-time-budget=60000",
        *arguments,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def look(browser: str, listener: Listener, folder: Path, pages: dict[str, Path], frames: tuple[str, ...]) -> Any:
    """What the probe saw in each frame, name/width: see ``PROBE``."""
    for name, path in pages.items():
        text = path.read_text(encoding="utf-8")
        (folder / f"{name}-probed.html").write_text(text.replace("<head>", f"<head>{PROBE}", 1), encoding="utf-8")
    shown = []
    for frame in frames:
        name, width = frame.split("/")
        style = f"width:{width}px;height:900px;border:0"
        shown.append(f'<iframe name="{frame}" src="{name}-probed.html" style="{style}"></iframe>')
    owner = folder / "frames.html"
    owner.write_text(FRAMES % "".join(shown))
    found = re.search(r'<pre id="seen">(.*?)</pre>', visit(browser, listener, folder, owner, "--dump-dom"), re.DOTALL)
    assert found
    return json.loads(html.unescape(found[1]))


def test_every_figure_is_drawn_and_nothing_leaves_the_file(
    browser: str, listener: Listener, pages: Path, trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a wide and on a narrow screen; of a run that forgot nothing, of a deep one, and of one that is open."""
    assert main(["report", "small", "--to", str(tmp_path), "--storage", trained]) == 0
    shown = {name: pages / f"{name}.html" for name in ("made-up", "deep", "open")}
    shown["small"] = tmp_path / "small.html"
    frames = ("made-up/1280", "made-up/390", "deep/1280", "deep/390", "open/390", "small/1280")
    seen = look(browser, listener, tmp_path, shown, frames)
    assert set(seen) == set(frames)
    for name, page in seen.items():
        assert page["errors"] == [], name
        assert page["resources"] == [], name
        assert not page["bad"], name
        assert f"{page['width']}" == name.split("/")[1]
        assert page["overflow"] <= 0, name
        expected = ("pareto", "grid") if name.startswith("open") else FIGURES
        assert tuple(page["figures"]) == expected, name
        for figure in [page["figures"], *page["tasks"].values()]:
            for kind, drawn in figure.items():
                least = 0 if "no trial with a score yet" in drawn["title"] else 2
                assert drawn["drawn"] >= (1 if kind in ("matrix", "used") else least), (name, drawn)
                assert drawn["title"], name
                assert page["width"] * 0.85 * (least > 0) <= drawn["width"] <= page["width"], (name, drawn)
                assert not [button for button in drawn["buttons"] if "hare" in button or "loud" in button]
    assert [line for line in listener.asked if not any(host in line for host in BROWSER_S_OWN)] == []
    assert set(seen["made-up/390"]["tasks"]) == {"1/1", "1/3", "2/1", "2/3"}
    assert "none has lost a sample" in seen["small/1280"]["figures"]["accuracy"]["title"]


def test_a_page_that_fetches_is_noticed(browser: str, listener: Listener, tmp_path: Path) -> None:
    """The test above would see it: here is one that does what it forbids."""
    page = tmp_path / "fetches.html"
    page.write_text('<!doctype html><img src="http://example.invalid/x.png"><p>done</p>')
    assert "done" in visit(browser, listener, tmp_path, page, "--dump-dom")
    assert any("example.invalid" in line for line in listener.asked)


def test_a_picture_of_the_page_is_not_blank(browser: str, listener: Listener, pages: Path, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "page.png"
    visit(browser, listener, tmp_path, pages / "made-up.html", f"--screenshot={picture}", "--window-size=1280,3000")
    with Image.open(picture) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert (0x00, 0x72, 0xB2) in colours  # the first layer
    assert (0xD5, 0x5E, 0x00) in colours  # the winner
