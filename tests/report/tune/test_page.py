"""The page of a tuning run: what its files say stands there, escaped, whatever is missing or broken."""

import json
import re
from html.parser import HTMLParser

import pytest

from midblock.base import MidblockError
from midblock.report import write_report
from midblock.report.gather import read_one
from midblock.report.read.reading import Run
from midblock.report.read.tuning import TuneRun
from midblock.report.write import page_of

OPTIONAL = ("plan.json", "log.jsonl", "summary.json", "config.yaml", "layers.parquet")


class Page(HTMLParser):
    """Section and figure ids, the visible text, the data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str | None] = []
        self.figures: list[str | None] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.handlers: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.inside = tag
        self.handlers += [name for name in found if name.startswith("on")]
        if tag == "section":
            self.sections.append(found.get("id"))
        if tag == "figure":
            self.figures.append(found["data-figure"])
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


def page(folder) -> Page:
    return Page(page_of(read_one(folder)))


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_each_kind_of_run_is_read_as_what_it_is(make_run, make_tune_run):
    analysis = make_run()
    assert type(read_one(analysis)) is Run
    assert type(read_one(make_tune_run())) is TuneRun
    with pytest.raises(MidblockError, match="no run folder"):
        read_one(analysis.parent / "nowhere")


def test_writes_page_and_figures_the_same_every_time(make_tune_run):
    folder = make_tune_run()
    path = write_report(folder)
    assert path == folder / "report.html"
    assert path.stat().st_size < 1_000_000
    names = {f"{name}.{kind}" for name in ("loss", "gradient_by_depth", "update_by_depth") for kind in ("png", "pdf")}
    assert {file.name for file in (folder / "figures").iterdir()} == names
    files = [path, *sorted((folder / "figures").iterdir())]
    before = [file.read_bytes() for file in files]
    write_report(folder)
    assert [file.read_bytes() for file in files] == before


def test_what_stands_there_for_lora(make_tune_run):
    seen = page(make_tune_run())
    assert seen.sections == ["top", "loss", "gradient", "weights", "cost", "numbers", "made"]
    assert seen.figures == [
        "plan", "loss", "gradient_map", "gradient_by_depth", "grad_norm", "update_by_depth", "speed",
    ]  # fmt: skip
    assert set(seen.data["figures"]) == set(seen.figures)
    for words in (
        "LoRA of blocks 6–11 of 30",
        "967.7 K 0.719 % of 134.5 M",
        "✓ 212 unchanged",
        "2.5 K tokens/s",
        "memory: peak 1.59 GiB, estimated 1.36 GiB",
        "8 min 40 s",
        "310 MiB on disk",
        "midblock tune gsm_symbolic --layers 6-11",
        "Trained tensors (24)",
        "576 × 576",
        "402\u202f113".replace("\u202f", " "),
        "model.layers.6.self_attn.q_proj",
    ):
        assert words in seen.text.replace("\u00a0", " ").replace("\u2060", ""), words
    assert "Objective" not in seen.text
    assert "not finished" not in seen.text


def test_the_plan_as_drawn(make_tune_run):
    plan = page(make_tune_run(ranks={0: 4, 1: 8, 29: 16})).data["plan"]
    assert plan["rows"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert plan["bars"] == [{"layer": 0, "value": 4}, {"layer": 1, "value": 8}, {"layer": 29, "value": 16}]
    assert plan["cells"][0]["said"] == "rank 4 · α 8 · scale 2 · 4.61\u00a0K parameters"
    assert plan["title"] == "Rank of the adapters"


def test_full_tuning_shows_parameters_and_the_head(make_tune_run):
    seen = page(make_tune_run(method="full", ranks={10: 1, 11: 1}))
    plan = seen.data["plan"]
    assert plan["title"] == "Trained parameters"
    assert plan["bars"][0] == {"layer": 10, "value": 884736 + 3 * 884736}
    assert plan["bars"][-1] == {"layer": 30, "value": 49152 * 576}
    assert plan["rows"][-1] == "head"
    assert "weights_heatmap" in seen.figures
    assert "rank" not in plan["cells"][0]["said"]
    assert "Bars show the rank" not in seen.text


def test_an_anchored_run_names_its_objective(make_tune_run):
    seen = page(make_tune_run(anchor=True))
    assert "dft + anchor" in seen.text
    assert "k = 64 · λ = 1.0 · scope block · 42 weights. On 1 of them k reaches the full rank" in seen.text
    assert "Plain NLL" in seen.text
    panels = seen.data["figures"]["loss"]["steps"]
    assert [line["key"] for panel in panels for line in panel["lines"]] == [
        "loss", "nll", "eval_nll", "penalty", "divergence", "learning_rate",
    ]  # fmt: skip


def test_the_plain_loss_is_drawn_once(make_tune_run):
    panels = page(make_tune_run()).data["figures"]["loss"]["steps"]
    assert [line["key"] for line in panels[0]["lines"]] == ["loss", "eval_nll"]
    assert panels[0]["lines"][0]["name"] == "loss (plain NLL)"


def test_hostile_text_stays_text(make_tune_run, hostile):
    folder = make_tune_run(text=hostile, anchor=True)
    edit(folder / "summary.json", headline=hostile)
    plan = json.loads((folder / "plan.json").read_text())
    plan["targets"][0] |= {"name": hostile, "role": hostile}
    edit(folder / "plan.json", targets=plan["targets"], by_part={hostile: 5, "mlp": 7}, loss=hostile)
    edit(folder / "plan.json", memory={hostile: 10**9}, layers=hostile, anchor={"k": hostile, "scope": hostile})
    edit(folder / "run.json", status=hostile, phases={hostile: {"seconds": 3.5}})
    text = page_of(read_one(folder))
    seen = Page(text)
    assert hostile not in text
    assert len(seen.scripts) == 2
    assert seen.handlers == []
    assert hostile in [cell["role"] for cell in seen.data["plan"]["cells"]]
    assert not re.search(r"innerHTML|fetch\(|@import|url\(", text)


@pytest.mark.parametrize("missing", [*((name,) for name in OPTIONAL), OPTIONAL], ids=lambda names: "+".join(names))
def test_missing_files_do_not_matter(make_tune_run, missing):
    folder = make_tune_run()
    for name in missing:
        (folder / name).unlink()
    text = write_report(folder).read_text(encoding="utf-8")
    assert Page(text).sections[-1] == "made"
    assert not re.search(r"\b(nan|None)\b", Page(text).text)


BROKEN = (
    "",
    "{",
    "[1]",
    '{"targets": 3, "blocks": {}, "memory": [], "loss": [], "models": 1, "by_part": 2, "total_blocks": "x"}',
    '{"targets": [{"block": true, "rank": "x"}, 7], "untouched": {"checked": "no"}, "memory": {"weights": "big"}}',
)


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_files_do_not_matter(make_tune_run, broken):
    folder = make_tune_run()
    for name in ("plan.json", "summary.json", "layers.parquet"):
        (folder / name).write_text(broken)
    assert {"loss", "gradient_map", "gradient_by_depth"} <= set(page(folder).figures)


def test_a_killed_run_says_so_and_shows_what_it_logged(make_tune_run):
    folder = make_tune_run(finished=False, steps=40)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 41, "loss": 1.')
    seen = page(folder)
    assert "not finished (status: running); its log ends at step 40" in seen.text
    assert "Blocks 6–11 of 30 by LoRA" in seen.text.replace("\u2060", "")
    assert seen.sections == ["top", "loss", "gradient", "cost", "numbers", "made"]
    assert seen.data["steps"]["step"] == list(range(1, 41))
    series = {s["metric"]: s for s in seen.data["series"]}
    first = json.loads((folder / "log.jsonl").read_text().splitlines()[0])["gradient_by_block"]
    assert series["gradient_norm_first"]["value"] == pytest.approx(list(first.values()), rel=1e-6)
    assert series["gradient_norm_first"]["layer"] == list(range(6, 12))


def test_changed_frozen_tensors_are_not_praised(make_tune_run):
    folder = make_tune_run()
    edit(folder / "summary.json", untouched={"checked": 212, "changed": 3})
    text = page(folder).text.replace("\u00a0", " ")
    assert "⚠ 3 of 212 changed" in text
    assert "✓" not in text


def test_the_ends_of_the_model_in_the_log(make_tune_run):
    folder = make_tune_run(finished=False)
    norms = {"-1": 0.1, "0": 0.2, "30": 0.3, "31": 0.4, "head": 0.5}
    (folder / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "gradient_by_block": norms}) + "\n")
    data = page(folder).data
    assert data["gradient"]["layer"] == [-1, 0, 30, 30]
    assert [s["layer"] for s in data["series"] if s["metric"] == "gradient_norm"] == [[-1, 0, 30, 30]]
