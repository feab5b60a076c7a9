"""The life of a run: nothing is written before it is prepared, and a finished one is read back."""

import json
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest

from midblock.base import LayerRow, MidblockError, Silent, folder_atomically
from midblock.runs.folder import RunFolder
from midblock.runs.record import read_record
from midblock.runs.request import Draft, Request
from midblock.runs.run import Bench, Outcome, Ready, carry_out
from midblock.runs.stopping import Stopped
from midblock.runs.where import Where

ROWS = [LayerRow("sft", layer, 3, "change", 0.5 * layer, 4) for layer in range(3)]
REQUEST = Request("analyze", {"seed": 0})


class Told:
    """What happened, in order."""

    def __init__(self):
        self.events = []

    def prepare(self, progress):
        self.events.append("prepare")
        return Ready(REQUEST, self.work, facts={"seed": 0}, notes=["first"], seconds=1.5)

    def work(self, bench):
        self.events.append("work")
        with bench.phase("measure"):
            bench.notes.append("second")
        if bench.partial:
            bench.partial.mkdir()
        files = {"texts.json": lambda path: path.write_text("[]")}
        return Outcome(ROWS, {"headline": "done"}, {"models": [{"name": "sft"}]}, files)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = carry_out(Draft(REQUEST), Told().prepare, Where())
    assert len(done.table) == 3
    assert done.folder is None
    assert not list(tmp_path.iterdir())


def test_a_run_leaves_its_files_and_its_record(tmp_path):
    folder = tmp_path / "run"
    carry_out(Draft(REQUEST), Told().prepare, Where(output_dir=folder, command="midblock analyze a b"))
    files = ["config.yaml", "layers.csv", "layers.parquet", "run.json", "summary.json", "texts.json"]
    assert sorted(path.name for path in folder.iterdir()) == files
    record = read_record(folder)
    assert record["status"] == "done"
    assert record["command"] == "midblock analyze a b"
    assert record["notes"] == ["first", "second"]
    assert record["models"] == [{"name": "sft"}]
    assert list(record["phases"]) == ["prepare", "measure", "write"]
    assert record["phases"]["prepare"]["seconds"] == 1.5
    assert json.loads((folder / "summary.json").read_text()) == {"headline": "done"}


def test_a_finished_run_is_read_back_and_not_made_again(tmp_path):
    where = {"output_dir": tmp_path / "run"}
    first = carry_out(Draft(REQUEST), Told().prepare, Where(**where))
    told = Told()
    again = carry_out(Draft(REQUEST), told.prepare, Where(**where, resume=True))
    assert not told.events
    assert again.outcome is None
    assert again.table.frame.equals(first.table.frame)


def test_what_is_cheap_is_checked_before_anything_is_read(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    told = Told()
    with pytest.raises(MidblockError, match="exists already"):
        carry_out(Draft(REQUEST), told.prepare, Where(output_dir=tmp_path))
    assert not told.events


def test_what_preparing_refuses_leaves_an_older_run_alone(tmp_path):
    where = {"output_dir": tmp_path / "run"}
    carry_out(Draft(REQUEST), Told().prepare, Where(**where))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    def refuse(progress):
        raise MidblockError("no such data")

    with pytest.raises(MidblockError, match="no such data"):
        carry_out(Draft(REQUEST), refuse, Where(**where, overwrite=True))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_what_was_found_before_an_error_stays_for_resume(tmp_path):
    folder = tmp_path / "run"

    def prepare(progress):
        def work(bench):
            bench.partial.mkdir()
            (bench.partial / "000001.safetensors").write_text("rows")
            raise MidblockError("no space left")

        return Ready(REQUEST, work)

    with pytest.raises(MidblockError, match="no space left"):
        carry_out(Draft(REQUEST), prepare, Where(output_dir=folder))
    assert read_record(folder)["status"] == "running"
    assert (folder / "partial" / "000001.safetensors").exists()
    told = Told()
    told.work = lambda bench: Outcome(ROWS, {"headline": "done"})
    carry_out(Draft(REQUEST), told.prepare, Where(output_dir=folder, resume=True))
    assert read_record(folder)["status"] == "done"
    assert not (folder / "partial").exists()


def test_models_in_memory_are_no_run_to_resume(tmp_path):
    carry_out(Draft(REQUEST), Told().prepare, Where(output_dir=tmp_path / "run"))
    draft = Draft(Request("analyze", {"seed": 0}, in_memory=("sft",)))
    with pytest.raises(MidblockError, match="sft is a model in memory, so an earlier run cannot be resumed"):
        carry_out(draft, Told().prepare, Where(output_dir=tmp_path / "run", resume=True))


def test_a_run_may_be_filled_beside_its_folder(tmp_path):
    folder, filled = tmp_path / "run", []

    @contextmanager
    def place(path):
        with folder_atomically(path) as made:
            filled.append(made)
            yield made
            assert not path.exists()

    carry_out(Draft(REQUEST), Told().prepare, Where(output_dir=folder, command="midblock merge"), place=place)
    assert filled[0] != folder
    assert not filled[0].exists()
    assert read_record(folder)["status"] == "done"
    assert read_record(folder)["command"] == "midblock merge"


def test_the_other_processes_write_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    carry_out(Draft(REQUEST), lambda progress: Ready(REQUEST, lambda bench: Outcome([], {})), Where(output_dir=folder))
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"done"', '"running"'))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setenv("RANK", "1")
    done = carry_out(Draft(REQUEST), Told().prepare, Where(output_dir=folder, resume=True), together=True)
    assert len(done.table) == 0
    (folder / "partial").rmdir()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_where_work_is_not_shared_the_other_processes_do_none(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    told = Told()
    done = carry_out(Draft(REQUEST), told.prepare, Where(output_dir=tmp_path / "run"))
    assert (len(done.table), told.events) == (0, [])
    assert not (tmp_path / "run").exists()
    assert len(carry_out(Draft(REQUEST), told.prepare, Where()).table) == len(ROWS)


def test_work_that_cannot_do_without_a_folder_is_told(tmp_path):
    assert Bench(RunFolder(tmp_path), Silent(), []).folder == tmp_path
    with pytest.raises(MidblockError, match=r"no folder to write \(output_dir\)"):
        _ = Bench(None, Silent(), []).folder


def test_a_finished_run_is_tidied_up_where_a_kill_left_its_scratch(tmp_path):
    where = {"output_dir": tmp_path / "run"}
    carry_out(Draft(REQUEST), Told().prepare, Where(**where))
    (tmp_path / "run" / "partial").mkdir()
    (tmp_path / "run" / ".layers.csv.4711.tmp").write_text("half")
    assert carry_out(Draft(REQUEST), Told().prepare, Where(**where, resume=True)).outcome is None
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert not names & {"partial", ".layers.csv.4711.tmp", ".midblock.lock"}


def test_what_preparing_refuses_leaves_no_folder(tmp_path):
    def refuse(progress):
        raise MidblockError("no such data")

    with pytest.raises(MidblockError, match="no such data"):
        carry_out(Draft(REQUEST), refuse, Where(output_dir=tmp_path / "deep" / "run"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("behaviour", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("place", [nullcontext, folder_atomically])
def test_while_one_fills_a_folder_another_is_refused(tmp_path, behaviour, place):
    told, folder = Told(), tmp_path / "run"

    def prepare(progress):
        ready = told.prepare(progress)

        def work(bench):
            with pytest.raises(MidblockError, match=r"run is being written by process \d+ on .*, since \d"):
                carry_out(Draft(REQUEST), Told().prepare, Where(output_dir=folder, **behaviour), place=place)
            return told.work(bench)

        return replace(ready, work=work)

    carry_out(Draft(REQUEST), prepare, Where(output_dir=folder), place=place)
    assert read_record(folder)["status"] == "done"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_run_stops_at_the_end_of_its_time_and_goes_on(tmp_path):
    steps, told = [], Told()

    def prepare(progress):
        advance = progress.phase("measuring", 3)

        def work(bench):
            for step in range(len(steps), 3):
                steps.append(step)
                advance(1)
            return told.work(bench)

        return replace(told.prepare(progress), work=work)

    where = {"output_dir": tmp_path / "run"}
    with pytest.raises(Stopped, match=r"stopped after 0\.000001s") as stopped:
        carry_out(Draft(REQUEST), prepare, Where(**where, max_time="0.000001s"))
    assert (stopped.value.code, steps) == (124, [0])
    carry_out(Draft(REQUEST), prepare, Where(**where, resume=True))
    assert steps == [0, 1, 2]
    assert read_record(tmp_path / "run")["status"] == "done"
