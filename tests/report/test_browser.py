"""The page in a real browser: it draws, asks nobody for anything, and runs no text that came with the data."""

import itertools
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from midblock.base import LayerRow, LayerTable
from midblock.report.gather import read_joint, read_one
from midblock.report.write import page_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)


class Tab:
    """One headless page, spoken to over the DevTools protocol."""

    def __init__(self, profile: str) -> None:
        import websocket

        command = [str(CHROMIUM), *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        watchdog = threading.Timer(20, self.process.kill)
        watchdog.start()
        try:
            found = (re.search(r"ws://([^/]+)/", line) for line in self.process.stderr or ())
            host = next(match[1] for match in found if match)
            with urllib.request.urlopen(f"http://{host}/json", timeout=10) as answer:
                target = next(entry for entry in json.load(answer) if entry["type"] == "page")
        except Exception:
            self.close()
            raise
        finally:
            watchdog.cancel()
        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=20)
        self.numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, expression: str) -> Any:
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 8) -> None:
        end = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def named(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] in methods]

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        if self.process.stderr:
            self.process.stderr.close()


@pytest.fixture(scope="module")
def browser():
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        tab = Tab(profile)
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                tab(f"{domain}.enable")
            yield tab
        finally:
            tab.close()


@pytest.fixture
def view(browser, make_run):
    """Open a run's page; whatever it did wrong meanwhile fails the test."""

    def open_page(
        folder: Path | None = None, width: int = 1280, others: tuple[Path, ...] = (), height: int = 2000
    ) -> Tab:
        page = (folder or make_run()) / "report.html"
        run = read_joint([page.parent, *others]) if others else read_one(page.parent)
        page.write_text(page_of(run), encoding="utf-8")
        browser.events.clear()
        browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        browser(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        browser("Page.navigate", url=page.as_uri())
        browser.until("document.readyState === 'complete' && document.querySelectorAll('.plot svg').length > 0")
        return browser

    yield open_page
    browser.run("1")  # collects events still on their way
    errors = browser.named("Runtime.exceptionThrown", "Log.entryAdded")
    errors += [event for event in browser.named("Runtime.consoleAPICalled") if event["type"] in ("error", "warning")]
    assert errors == []
    asked = [event["request"]["url"] for event in browser.named("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1
    assert browser.run("typeof window.hacked") == "undefined"


DRAW_ALL = "document.querySelectorAll('details').forEach(d => d.open = true); window.scrollTo(0, 1e6)"


def test_all_figures_are_drawn_and_hostile_text_is_not_run(view):
    tab = view()
    tab("Emulation.setDeviceMetricsOverride", width=1280, height=12000, deviceScaleFactor=1, mobile=False)
    tab.run(DRAW_ALL)
    tab.until("[...document.querySelectorAll('[data-figure]')].every(f => f.querySelector('svg'))")
    drawn = "s.querySelector('path.line, rect.bar, rect.cell')"
    assert tab.run(f"[...document.querySelectorAll('.plot svg')].filter(s => !{drawn}).length") == 0
    written = "[...document.querySelectorAll('.plot svg *')].flatMap(n => [...n.attributes].map(a => a.name + a.value))"
    assert tab.run(f"{written}.filter(text => /NaN|undefined|Infinity/.test(text))") == []


SHUT = "f.closest('details:not([open])')"
ALL_DRAWN = "document.readyState === 'complete' && document.documentElement.dataset.drawn === 'all'"
BARE = "!f.querySelector('path.line, path.thin, rect.bar, rect.cell')"


@pytest.mark.parametrize("width", [1280, 390])
def test_figures_are_there_without_scrolling(view, width):
    """The first screen when the page has loaded, the rest soon after, what is behind a click on paper as well."""
    tab = view(width=width, height=700)
    near = "f.getBoundingClientRect().top < innerHeight"
    bare = f"[...document.querySelectorAll('[data-figure]')].filter(f => {BARE})"
    assert tab.run(f"{bare}.filter(f => !{SHUT} && {near}).length") == 0
    tab.until(ALL_DRAWN)
    assert tab.run("scrollY") == 0
    assert tab.run(f"{bare}.filter(f => !{SHUT}).length") == 0
    assert tab.run("document.querySelectorAll('.numbers td').length") > 0
    assert tab.run(f"{bare}.length") > 0
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert tab.run(f"{bare}.length") == 0
    tab.run("dispatchEvent(new Event('afterprint'))")
    assert tab.run("document.querySelectorAll('details.more[open]').length") == 0


def test_a_saved_page_is_built_once(view, tmp_path):
    tab = view()
    tab.until(ALL_DRAWN)
    built = "['.modes', '.chips', '.filters select', '.numbers table', '.plot svg']"
    count = f"{built}.map(s => document.querySelectorAll(s).length)"
    before = tab.run(count)
    (tmp_path / "saved.html").write_text("<!DOCTYPE html>" + tab.run("document.documentElement.outerHTML"))
    tab.events.clear()
    tab("Page.navigate", url=(tmp_path / "saved.html").as_uri())
    tab.until(f"location.pathname.endsWith('saved.html') && {ALL_DRAWN}")
    assert tab.run(count) == before


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling(view, width):
    tab = view(width=width)
    tab("Emulation.setDeviceMetricsOverride", width=width, height=20000, deviceScaleFactor=1, mobile=width < 600)
    tab.run(DRAW_ALL)
    tab.until("document.querySelector('.numbers td') !== null")
    assert tab.run("document.documentElement.scrollWidth") <= width


def test_dark_and_light(view):
    tab = view()
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.run(ground)
    tab("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = tab.run(ground)
    assert dark != light
    tab.run("document.getElementById('theme').click()")
    assert tab.run(ground) == light
    tab.run("document.getElementById('theme').click()")
    assert tab.run(ground) == dark


def test_pointing_and_arrow_keys_tell_values(view):
    tab = view()
    for step in range(20):  # the figure may still be moving while the page settles
        left, top, width, height = tab.run(
            "(r => [r.left, r.top, r.width, r.height])"
            "(document.querySelector('#figure-change_by_depth .overlay').getBoundingClientRect())"
        )
        tab("Input.dispatchMouseEvent", type="mouseMoved", x=left + width / 2 + step % 2, y=top + height / 2)
        if not tab.run("document.getElementById('tip').hidden"):
            break
        time.sleep(0.1)
    assert re.match(r"Block 5|Block 6", tab.run("document.getElementById('tip').textContent"))
    for figure, word in (("cka_debiased", "Block 0"), ("weights_heatmap", "q_proj")):
        tab.run(f"document.querySelector('#figure-{figure}').scrollIntoView()")
        tab.until(f"document.querySelector('#figure-{figure} .overlay') !== null")
        key = "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true})"
        text = tab.run(
            f"(() => {{ const a = document.querySelector('#figure-{figure} .overlay');"
            f"a.focus(); a.dispatchEvent({key}); return a.getAttribute('aria-valuetext'); }})()"
        )
        assert word in text


def test_the_table_filters_and_sorts(view):
    tab = view()
    tab.run("document.getElementById('numbers').scrollIntoView()")
    tab.until("document.querySelector('.numbers td') !== null")
    tab.run(
        "(() => { const s = document.querySelector('.filters select'); s.value = 'cka_debiased';"
        "s.dispatchEvent(new Event('change')); })()"
    )
    assert tab.run("document.querySelector('.count').textContent") == "28 rows"
    values = "[...document.querySelectorAll('.numbers td:nth-child(6)')].map(c => parseFloat(c.textContent))"
    click = "document.querySelector('th[data-column=value] button').click()"
    tab.run(click)
    rising = tab.run(values)
    assert rising == sorted(rising)
    tab.run(click)
    assert tab.run(values) == rising[::-1]
    assert tab.run("document.querySelector('th[data-column=value]').getAttribute('aria-sort')") == "descending"
    assert tab.run("csv(allRows()).split('\\n')[0]") == "model,dataset,layer,depth,module,metric,value,low,high,n,state"


def test_what_is_not_measured_in_full_is_hollow_and_says_why(view, make_run):
    """Of one model one curve's embedding and block 0, and one block's bar; all else of the page stays as it was."""
    folder = make_run()
    frame = LayerTable.read(folder).to_pandas()
    first = (frame.model == "sft") & (frame.layer < 1)
    frame.loc[first & (frame.metric == "cka_debiased"), "state"] = "below_floor"
    frame.loc[first & (frame.metric == "change_increment") & (frame.layer == 0), "state"] = "as_random"
    LayerTable(frame).write(folder)
    tab = view(folder)
    tab.run("document.querySelector('#figure-cka_debiased').scrollIntoView()")
    tab.until("document.querySelector('#figure-cka_debiased .overlay') !== null")
    assert tab.run("document.querySelectorAll('#figure-cka_debiased .marks circle.unsure').length") == 2
    legend = "document.querySelector('#figure-{} .legend').textContent"
    assert "hollow: no more than rounding makes" in tab.run(legend.format("cka_debiased"))
    assert "hollow: no other than a random change" in tab.run(legend.format("change_by_depth"))
    assert tab.run("document.querySelectorAll('#figure-change_by_depth .bar.unsure').length") == 1
    key = "new KeyboardEvent('keydown', {key: 'Home', bubbles: true})"
    text = tab.run(
        "(() => { const a = document.querySelector('#figure-cka_debiased .overlay');"
        f"a.focus(); a.dispatchEvent({key}); return a.getAttribute('aria-valuetext'); }})()"
    )
    assert text.count("no more than rounding makes") == 1
    tab.run("document.getElementById('numbers').scrollIntoView()")
    tab.until("document.querySelector('.numbers td') !== null")
    assert tab.run("allRows().filter(row => row.state !== 'measured').length") == 3
    assert tab.run("document.querySelector('th[data-column=state]') !== null")


def test_a_page_of_whole_numbers_has_nothing_hollow(view):
    tab = view()
    tab.run(DRAW_ALL)
    tab.until("document.querySelectorAll('.plot:empty').length === 0")
    assert tab.run("document.querySelectorAll('.unsure').length") == 0


def test_figures_can_be_saved(view, tmp_path):
    tab = view()
    tab("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved"))
    for kind in ("svg", "png"):
        tab.run(f"document.querySelector('#figure-change_by_depth [data-save={kind}]').click()")
    end = time.monotonic() + 8
    saved = {tmp_path / "saved" / f"change_by_depth.{kind}" for kind in ("svg", "png")}
    while not all(file.exists() and file.stat().st_size for file in saved):
        assert time.monotonic() < end, list((tmp_path / "saved").glob("*"))
        time.sleep(0.05)
    drawing = (tmp_path / "saved" / "change_by_depth.svg").read_text(encoding="utf-8")
    assert drawing.startswith("<svg")
    assert not re.search(r"var\(|color-mix|light-dark|color\(srgb|class=", drawing)
    assert (tmp_path / "saved" / "change_by_depth.png").read_bytes().startswith(b"\x89PNG")


def test_switching_scale_model_and_metric(view):
    tab = view()
    tab.until("document.querySelector('#figure-cka_debiased svg') !== null")
    for place in (1, 2):
        tab.run(f"document.querySelectorAll('#figure-cka_debiased .modes button')[{place}].click()")
        assert tab.run("document.querySelectorAll('#figure-cka_debiased path.line').length") >= 2
    tab.run("document.querySelector('.chips button').click()")
    assert tab.run("document.querySelectorAll('#figure-cka_debiased path.m1.line').length") == 0
    tab.run("document.querySelector('#figure-weights_heatmap').scrollIntoView()")
    tab.until("document.querySelectorAll('#figure-weights_heatmap select').length === 2")
    before = tab.run("document.querySelector('#figure-weights_heatmap .cell').style.fill")
    tab.run(
        "(() => { const s = document.querySelectorAll('#figure-weights_heatmap select')[1]; s.selectedIndex = 1;"
        "s.dispatchEvent(new Event('change')); })()"
    )
    assert tab.run("document.querySelector('#figure-weights_heatmap .cell').style.fill") != before


def test_weights_only_and_sparse_layers(view, make_run, residual, weights):
    tab = view(make_run(weights, name="weights"))
    tab.until("document.querySelectorAll('.plot svg').length >= 2")
    tab = view(make_run([row for row in residual if row.layer in (0, 4, 5, 11)], name="sparse"))
    tab.until("document.querySelector('#figure-cka_debiased .bridge') !== null")


TUNED = (
    {},
    {"anchor": True, "steps": 3000},
    {"method": "full"},
    {"finished": False, "steps": 1},
    {"steps": 30, "every": 5},
)


@pytest.mark.parametrize("keywords", TUNED, ids=str)
def test_a_tuning_run_draws_all_its_figures(view, make_tune_run, hostile, keywords):
    folder = make_tune_run(text=hostile, **keywords)
    for width in (390, 1280):
        tab = view(folder, width=width)
        tab("Emulation.setDeviceMetricsOverride", width=width, height=12000, deviceScaleFactor=1, mobile=width < 600)
        tab.run(DRAW_ALL)
        tab.until("[...document.querySelectorAll('[data-figure]')].every(f => f.querySelector('svg'))")
        assert tab.run("document.documentElement.scrollWidth") <= width
        drawn = "s.querySelector('path.line, path.thin, rect.bar, rect.cell')"
        assert tab.run(f"[...document.querySelectorAll('.plot svg')].filter(s => !{drawn}).length") == 0
        written = (
            "[...document.querySelectorAll('.plot svg *')].flatMap(n => [...n.attributes].map(a => a.name + a.value))"
        )
        assert tab.run(f"{written}.filter(text => /NaN|undefined|Infinity/.test(text))") == []


def test_labels_of_a_tuning_run_are_not_cut(view, make_tune_run):
    tab = view(make_tune_run(method="full"), width=390)
    tab("Emulation.setDeviceMetricsOverride", width=390, height=12000, deviceScaleFactor=1, mobile=True)
    tab.run(DRAW_ALL)
    tab.until("[...document.querySelectorAll('[data-figure]')].every(f => f.querySelector('svg'))")
    outside = (
        "[...document.querySelectorAll('.plot svg text')].filter(t => { const b = t.getBoundingClientRect(),"
        "s = t.closest('svg').getBoundingClientRect(); return b.left < s.left - 1 || b.right > s.right + 1; })"
    )
    assert tab.run(f"{outside}.map(t => t.textContent)") == []


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        ("plan", ("Block 0 · frozen",)),
        ("loss", ("Step 1 · epoch", "loss (plain NLL): ", "learning rate: ")),
        ("gradient_map", ("Block 6 · step 1 to 2", "gradient norm, mean: ")),
        ("update_by_depth", ("Block 6", "tuned: ")),
    ],
)
def test_pointing_at_a_tuning_run_tells_values(view, make_tune_run, figure, words):
    tab = view(make_tune_run())
    tab.run(f"document.querySelector('#figure-{figure}').scrollIntoView()")
    tab.until(f"document.querySelector('#figure-{figure} .overlay') !== null")
    key = "new KeyboardEvent('keydown', {key: 'Home', bubbles: true})"
    if figure == "gradient_map":
        key = "new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true})"
    text = tab.run(
        f"(() => {{ const a = document.querySelector('#figure-{figure} .overlay');"
        f"a.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowRight', bubbles: true}}));"
        f"a.dispatchEvent({key}); return a.getAttribute('aria-valuetext'); }})()"
    )
    for word in words:
        assert word in text


OUTSIDE = (
    "[...document.querySelectorAll('.plot svg text')].filter(t => { const b = t.getBoundingClientRect(),"
    "s = t.closest('svg').getBoundingClientRect(); return b.left < s.left - 1 || b.right > s.right + 1; })"
    ".map(t => t.textContent)"
)
DRAWN = "s.querySelector('path.line, path.thin, rect.bar, rect.cell, line.line, line, rect')"


@pytest.mark.parametrize("width", [390, 1280])
def test_a_joint_page_draws_everything(view, runs, make_tune_run, tmp_path, hostile, width):
    first, *others = runs.write_all(tmp_path / "all", text=hostile, tuned=f"sft {hostile}")
    tab = view(first, width, (*others, make_tune_run("sft", text=hostile)))
    tab("Emulation.setDeviceMetricsOverride", width=width, height=20000, deviceScaleFactor=1, mobile=width < 600)
    tab.run(DRAW_ALL)
    tab.until("[...document.querySelectorAll('[data-figure]')].every(f => f.querySelector('svg'))")
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.run(f"[...document.querySelectorAll('.plot svg')].filter(s => !{DRAWN}).length") == 0
    written = "[...document.querySelectorAll('.plot svg *')].flatMap(n => [...n.attributes].map(a => a.name + a.value))"
    assert tab.run(f"{written}.filter(text => /NaN|undefined|Infinity/.test(text))") == []
    for link in tab.run("[...document.querySelectorAll('nav a, .story a')].map(a => a.getAttribute('href'))"):
        assert tab.run(f"document.querySelector('{link}') !== null")


@pytest.mark.parametrize("verb", ["probe", "steer", "flow", "merge", "swap"])
def test_the_page_of_each_verb_draws_at_both_widths(view, runs, tmp_path, hostile, verb):
    folder = runs.WRITERS[verb](tmp_path / verb, text=hostile)
    for width in (390, 1280):
        tab = view(folder, width)
        tab("Emulation.setDeviceMetricsOverride", width=width, height=9000, deviceScaleFactor=1, mobile=width < 600)
        tab.run(DRAW_ALL)
        tab.until("[...document.querySelectorAll('[data-figure]')].every(f => f.querySelector('svg'))")
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run(OUTSIDE) == []


def test_texts_stand_beside_each_other_or_below(view, runs, tmp_path):
    folder = runs.write_steer_run(tmp_path / "steer")
    lefts = "[...document.querySelector('.answers').children].map(c => Math.round(c.getBoundingClientRect().left))"
    assert len(set(view(folder, 1280).run(lefts))) == 3
    assert len(set(view(folder, 390).run(lefts))) == 1


def test_a_joint_page_in_the_dark(view, runs, tmp_path):
    first, *others = runs.write_all(tmp_path / "all")
    tab = view(first, 1280, tuple(others))
    colour = "getComputedStyle(document.querySelector('.story li')).backgroundColor"
    light = tab.run(colour)
    tab("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.run(colour) != light


def test_samples_controls_and_emergence_are_drawn_and_told(view, runs, tmp_path):
    first = runs.write_analysis_run(tmp_path / "analysis", seeds=3)
    tab = view(first, 1280, (runs.write_probe_run(tmp_path / "probe"), runs.write_steer_run(tmp_path / "steer")))
    tab("Emulation.setDeviceMetricsOverride", width=1280, height=12000, deviceScaleFactor=1, mobile=False)
    for figure, mark, words in (
        ("cka_debiased", "path.seeds", "range over 3 samples"),
        ("early_exit", "path.centre", "half of the final accuracy"),
        ("steering", "path.random", "random directions of the same norm"),
    ):
        tab.until(f"document.querySelector('#figure-{figure} .marks {mark}') !== null")
        assert words in tab.run(f"document.querySelector('#figure-{figure} .legend').textContent")
    text = tab.run(
        "(() => { const a = document.querySelector('#figure-steering .overlay');"
        "a.dispatchEvent(new KeyboardEvent('keydown', {key: 'End', bubbles: true}));"
        "return a.getAttribute('aria-valuetext'); })()"
    )
    assert "Block 29" in text
    assert "random: 0.0" in text


def test_hiding_the_only_model_with_numbers_leaves_no_broken_figure(view, runs, tmp_path):
    folders = [runs.write_analysis_run(tmp_path / name, tuned=name) for name in ("one", "two")]
    tab = view(folders[0], 1280, (folders[1], runs.write_steer_run(tmp_path / "steer", tuned="one")))
    tab("Emulation.setDeviceMetricsOverride", width=1280, height=12000, deviceScaleFactor=1, mobile=False)
    tab.until("document.querySelector('#figure-steering svg') !== null")
    tab.run("document.querySelector('.chips button').click()")
    assert tab.run("document.querySelectorAll('#figure-steering .marks path').length") == 0
    assert tab.run("document.querySelectorAll('#figure-change_by_depth .m2').length") > 0


def test_no_change_is_the_middle_of_a_map_with_a_sign(view, make_run):
    rows = [
        LayerRow("sft", layer, 3, "expert_load_change", value, 10, module=f"expert:{expert}")
        for expert, value in enumerate((-0.1, 0.0, 0.2))
        for layer in range(3)
    ]
    tab = view(make_run(rows, name="experts"))
    tab.run("document.querySelector('#figure-experts_heatmap').scrollIntoView()")
    tab.until("document.querySelectorAll('#figure-experts_heatmap .cell').length === 9")
    fills = tab.run("[...document.querySelectorAll('#figure-experts_heatmap .cell')].map((cell) => cell.style.fill)")
    less, none, more = fills[0], fills[3], fills[6]
    assert " 0%" in none or "0.0%" in none
    assert "--m2" in less
    assert "--m1" in more
