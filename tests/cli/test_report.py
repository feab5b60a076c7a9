import pytest

from midblock.base import LayerRow, LayerTable
from midblock.cli.main import main


@pytest.fixture
def run(tmp_path):
    rows = [LayerRow("sft", layer, 4, "cka_debiased", 0.9, 8, 0.8, 1.0, "d") for layer in range(4)]
    LayerTable.from_rows(rows).write(tmp_path / "run")
    return tmp_path / "run"


def test_report_is_drawn_from_the_tables_alone(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"Report: {run / 'report.html'}\n"
    assert "cka_debiased" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["-o", "--output", "--output-dir"])
def test_where_to_is_said_as_to_other_verbs(run, capsys, option):
    assert main(["report", str(run), option, str(run.parent / "page")]) == 0
    assert capsys.readouterr().out == f"Report: {run.parent / 'page' / 'report.html'}\n"


def test_report_of_nothing(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"midblock: no layer table at {tmp_path}/layers.parquet (give a run folder written by `midblock analyze`)\n"
    )
