"""The page's text: escaped, self-contained, with the sections its data allows and no others."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from midblock.base import MidblockError
from midblock.report import write_report
from midblock.report.page.island import island
from midblock.report.read.reading import Run
from midblock.report.write import page_of

LOADING = ("src", "srcset", "href", "action", "poster", "data", "background")


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, section ids, figures, the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.island = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][1].get("id") == "data" and self.tags[-1][0] == "script":
            self.island += data

    def ids(self, tag: str) -> list[str | None]:
        return [attributes.get("id") for name, attributes in self.tags if name == tag]

    @property
    def figures(self) -> set[str | None]:
        return {attributes["data-figure"] for name, attributes in self.tags if name == "figure"}

    @property
    def data(self) -> dict:
        return json.loads(self.island)


def page(folder: Path) -> Page:
    return Page(page_of(Run.read(folder)))


def test_writes_page_and_figures_the_same_every_time(make_run):
    folder = make_run()
    path = write_report(folder)
    assert path == folder / "report.html"
    assert 50_000 < path.stat().st_size < 1_000_000
    files = [path, *sorted((folder / "figures").iterdir())]
    before = [file.read_bytes() for file in files]
    write_report(folder)
    assert [file.read_bytes() for file in files] == before
    assert not list(folder.rglob(".*"))


def test_hostile_text_stays_text(make_run, hostile):
    text = page_of(Run.read(make_run()))
    seen = Page(text)
    assert hostile not in text
    assert [attributes.get("id") for tag, attributes in seen.tags if tag == "script"] == ["data", None]
    assert not [attributes for _, attributes in seen.tags if any(name.startswith("on") for name in attributes)]
    assert f"dpo {hostile}" in seen.data["models"]


def test_nothing_is_loaded_from_anywhere(make_run, tmp_path):
    (tmp_path / "still.png").write_bytes(b"picture")
    text = page_of(Run.read(make_run()), tmp_path / "still.png")
    sources = [value for _, attributes in Page(text).tags for name, value in attributes.items() if name in LOADING]
    assert "data:image/png;base64,cGljdHVyZQ==" in sources
    assert [source for source in sources if not source.startswith(("data:", "#"))] == []
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|innerHTML|eval\(", text)
    assert "default-src 'none'" in text
    assert "script-src 'sha256-" in text


def test_every_section_with_full_data(make_run):
    seen = page(make_run())
    expected = [
        "top",
        "similarity",
        "information",
        "weights",
        "predictions",
        "correlations",
        "others",
        "numbers",
        "made",
    ]
    assert seen.ids("section") == expected
    shown = {
        "change_by_depth",
        "cka_debiased",
        "cka",
        "prompt_entropy",
        "weights_heatmap",
        "logit_kl",
        "l2_norm",
        "procrustes",
    }
    assert shown <= seen.figures
    assert {spec["id"] for spec in seen.data["figures"].values()} == seen.figures


def test_weights_only(make_run, weights):
    seen = page(make_run(weights))
    assert seen.ids("section") == ["top", "weights", "correlations", "numbers", "made"]
    assert {"change_by_depth", "weights_heatmap", "correlations"} <= seen.figures


def test_a_single_metric_has_no_first_figure(make_run, residual):
    seen = page(make_run([row for row in residual if row.metric.startswith("prompt_entropy")]))
    assert seen.ids("section") == ["top", "information", "correlations", "numbers", "made"]
    assert "change_by_depth" not in seen.figures
    assert "prompt_entropy" in seen.figures


def test_restricted_layers_keep_the_depth(make_run, residual, weights):
    rows = [row for row in residual + weights if row.layer in (0, 4, 5, 11)]
    data = page(make_run(rows)).data
    assert data["blocks"] == 12
    assert {tuple(series["layer"]) for series in data["series"]} == {(0, 4, 5, 11)}


def test_the_embedding_alone(make_run, residual):
    folder = make_run([row for row in residual if row.layer == -1])
    assert write_report(folder).exists()


def test_missing_numbers_are_gaps(make_run, residual):
    rows = [replace(row, value=float("nan")) if row.layer == 3 else row for row in residual]
    rows = [replace(row, value=float("nan")) if row.metric == "curvature" else row for row in rows]
    rows = [replace(row, value=float("inf")) if row.metric == "logit_kl" and row.layer == 4 else row for row in rows]
    folder = make_run(rows)
    seen = Page(write_report(folder).read_text(encoding="utf-8"))
    series = {(s["metric"], s["model"]): s for s in seen.data["series"]}
    assert series["cka_debiased", "sft"]["value"][4] is None
    assert series["logit_kl", "sft"]["value"][5] is None
    assert "curvature" not in seen.figures
    assert "low" not in series["prompt_entropy.split_floor", "base"]


def test_a_metric_the_catalogue_does_not_know(make_run, residual):
    rows = [replace(row, metric="brand_new") if row.metric == "l2_norm" else row for row in residual]
    assert "brand_new" in page(make_run(rows)).figures


def test_the_table_alone_is_enough(make_run):
    text = page_of(Run.read(make_run(bare=True)))
    assert "What fine-tuning changed, layer by layer" in text
    assert "against base" in text


@pytest.mark.parametrize("broken", ["", "{", "[1]", '"text"', '{"models": 3, "data": [], "phases": 1, "notes": {}}'])
def test_broken_files_beside_the_table_do_not_matter(make_run, broken):
    folder = make_run()
    for name in ("run.json", "summary.json", "samples.json"):
        (folder / name).write_text(broken)
    assert page(folder).figures


def test_no_table_is_a_clear_error(tmp_path, make_run):
    with pytest.raises(MidblockError, match="no run folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MidblockError, match="no layer table"):
        write_report(tmp_path / "empty")
    with pytest.raises(MidblockError, match="is empty"):
        write_report(make_run([]))


def test_island_cannot_be_left():
    value = {"a": "</script><!-- & \u2028\u2029", "b": [1.5, None]}
    text = island(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value
