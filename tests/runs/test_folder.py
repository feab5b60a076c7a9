import json
import os
import subprocess
import sys

import pytest
import yaml

from midblock.base import MidblockError
from midblock.runs.folder import RunFolder, discard, standing
from midblock.runs.record import read_record
from midblock.runs.request import DATA_FILES, Draft, Request
from midblock.runs.where import Where

CONFIG = {"base": "a", "tuned": ["b"], "seed": 0, "layers": "all"}


def request(verb="analyze", inputs=None, sources=(), **changes):
    return Request(verb, CONFIG | changes, inputs or {}, tuple(sources))


def make(path, **changes):
    return RunFolder.open(path, request(**changes), Where())


def test_a_new_folder_records_how_it_was_made(tmp_path):
    run = make(tmp_path / "deep" / "run")
    record = read_record(run.path)
    assert (record["verb"], record["status"]) == ("analyze", "running")
    assert record["versions"]["torch"]
    assert record["platform"]["python"]
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == CONFIG
    assert not run.done


def test_an_empty_folder_may_be_filled(tmp_path):
    assert make(tmp_path).path == tmp_path


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(MidblockError, match=r"exists already \(choose another --output-dir\)$"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_only_what_works_is_offered(tmp_path):
    make(tmp_path / "run")
    with pytest.raises(MidblockError, match=r"\(--resume continues it, --overwrite replaces it, or choose another "):
        make(tmp_path / "run")
    with pytest.raises(MidblockError, match=r"exists already \(--overwrite replaces it, or choose another --output-"):
        make(tmp_path / "run", seed=7)


def test_only_own_folders_are_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(MidblockError, match="was not written by midblock, so it is not overwritten"):
        overwrite(tmp_path)
    assert (tmp_path / "mine.txt").exists()
    run = make(tmp_path / "run")
    (run.path / "layers.csv").write_text("old")
    overwrite(run.path)
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "run.json"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(MidblockError, match=r"run is a file .*wants a folder"):
        make(tmp_path / "run")


def resume(path, verb="analyze", **changes):
    return RunFolder.open(path, request(verb, **changes), Where(resume=True))


def overwrite(path, **changes):
    return RunFolder.open(path, request(**changes), Where(overwrite=True))


def test_resume_keeps_what_is_there(tmp_path):
    run = make(tmp_path / "run")
    run.record["mark"] = 7
    run.save()
    (run.path / "partial").mkdir()
    again = resume(run.path)
    assert again.record["mark"] == 7
    assert again.partial.exists()


def test_resume_of_nothing_begins(tmp_path):
    assert resume(tmp_path / "new").record["status"] == "running"


def test_resume_refuses_other_settings_and_names_them(tmp_path):
    run = make(tmp_path / "run")
    with pytest.raises(MidblockError, match=r"other settings: layers: 'all' then, '0-2' now, seed: 0 then, 1 now"):
        resume(run.path, seed=1, layers="0-2")
    with pytest.raises(MidblockError, match="extra: None then, 3 now"):
        resume(run.path, extra=3)
    with pytest.raises(MidblockError, match="holds a run of `midblock analyze`, not of `tune`"):
        resume(run.path, verb="tune")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_resume_of_a_broken_record(tmp_path, content):
    run = make(tmp_path / "run")
    (run.path / "run.json").write_text(content) if content else (run.path / "run.json").unlink()
    with pytest.raises(MidblockError, match=r"is no run folder: run\.json is missing or broken"):
        resume(run.path)


@pytest.mark.parametrize("content", [None, "a: [", "- a"])
def test_resume_of_a_broken_config(tmp_path, content):
    run = make(tmp_path / "run")
    (run.path / "config.yaml").write_text(content) if content else (run.path / "config.yaml").unlink()
    with pytest.raises(MidblockError, match=r"config\.yaml"):
        resume(run.path)


def test_finish_drops_the_partial_state(tmp_path):
    run = make(tmp_path / "run")
    run.partial.mkdir()
    (run.partial / "000001.safetensors").write_text("x")
    run.finish()
    assert resume(run.path).done
    assert not run.partial.exists()


def test_phases_add_up_and_survive_an_error(tmp_path):
    run = make(tmp_path / "run")
    run.record["phases"] = {"measure": {"seconds": 100.0, "peak_memory_mb": 1}}
    with pytest.raises(ValueError, match="bug"), run.phase("measure"):
        raise ValueError("bug")
    assert run.record["phases"]["measure"]["seconds"] >= 100
    assert run.record["phases"]["measure"]["peak_memory_mb"] > 10


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_leaves_the_record_of_before(tmp_path):
    run = make(tmp_path / "run")
    (run.path / f".run.json.{os.getpid()}.tmp").symlink_to("/dev/full")
    run.record["status"] = "done"
    with pytest.raises(MidblockError, match=r"no space left for .*run\.json"):
        run.save()
    assert read_record(run.path)["status"] == "running"


KILLED = """
import os, signal, sys
from pathlib import Path
from midblock.base import replace_atomically
with replace_atomically(Path(sys.argv[1]) / "run.json") as path:
    path.write_text('{"verb": "ana')
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_killed_write_leaves_the_old_file_whole(tmp_path):
    run = make(tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", KILLED, str(run.path)], check=False)
    assert done.returncode == -9
    assert json.loads((run.path / "run.json").read_text())["verb"] == "analyze"
    assert resume(run.path).record["verb"] == "analyze"


def test_check_raises_what_open_would_and_changes_nothing(tmp_path):
    run = make(tmp_path / "run", inputs={"the data": "abc"})
    before = (run.path / "run.json").read_bytes()

    def check(draft, **behaviour):
        return RunFolder.check(run.path, draft, Where(**behaviour))

    assert RunFolder.check(tmp_path / "new", Draft(request()), Where()) is None
    assert check(Draft(request()), overwrite=True) is None
    more = {"the data": "abc", "the weights": 1}
    assert check(Draft(request(inputs=more)), resume=True)["status"] == "running"
    with pytest.raises(MidblockError, match="exists already"):
        check(Draft(request()))
    with pytest.raises(MidblockError, match="other settings: seed: 0 then, 1 now"):
        check(Draft(request(seed=1)), resume=True)
    assert check(Draft(request(seed=1), frozenset({"seed"})), resume=True)
    with pytest.raises(MidblockError, match=r"the data changed since \(--overwrite measures it anew"):
        check(Draft(request(inputs={"the data": "abd"})), resume=True)
    assert (run.path / "run.json").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_folder_says_whether_it_is_of_a_request(tmp_path):
    path, asked = tmp_path / "run", Draft(request(inputs={"the data": "abc"}))
    assert not standing(path, asked).same
    run = make(path, inputs={"the data": "abc"})
    found = standing(path, asked)
    assert (found.same, found.finished, found.resumable) == (True, False, True)
    other = standing(path, Draft(request(seed=1)))
    assert (other.same, other.resumable, other.differences) == (False, False, ("seed: 0 then, 1 now",))
    assert standing(path, Draft(request(seed=1), frozenset({"seed"}))).same
    assert standing(path, Draft(request(inputs={"the data": "abd"}))).changed == ("the data",)
    assert standing(path, Draft(request("tune"))).differences == ("verb: 'analyze' then, 'tune' now",)
    run.finish()
    found = standing(path, asked)
    assert (found.same, found.finished, found.resumable) == (True, True, False)


def test_a_stopped_merge_cannot_be_resumed(tmp_path):
    make(tmp_path / "run", verb="merge")
    found = standing(tmp_path / "run", Draft(request("merge")))
    assert (found.same, found.resumable) == (True, False)


def test_a_folder_of_somebody_else_is_of_no_request(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    found = standing(tmp_path, Draft(request()))
    assert (found.same, found.finished, found.resumable) == (False, False, False)


@pytest.mark.parametrize(("verb", "stays"), [("tune", ["adapter"]), ("analyze", ["adapter", "checkpoints"])])
def test_finish_drops_what_is_not_needed_any_more(tmp_path, verb, stays):
    run = make(tmp_path / "run", verb=verb)
    for name in ("partial", "checkpoints", "adapter"):
        (run.path / name).mkdir()
    run.finish()
    assert sorted(path.name for path in run.path.iterdir()) == [*stays, "config.yaml", "run.json"]


def test_a_phase_is_on_disk_when_it_ends(tmp_path):
    run = make(tmp_path / "run")
    with run.phase("measure"):
        pass
    assert "measure" in read_record(run.path)["phases"]


@pytest.mark.parametrize("content", ['{"my": "thing"}', '{"verb": "weave"}', '{"verb": ["analyze"]}', "[]", "{"])
def test_a_record_that_is_not_ours_protects_its_folder(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(MidblockError, match="was not written by midblock, so it is not overwritten"):
        overwrite(tmp_path)
    assert (tmp_path / "run.json").read_text() == content


@pytest.mark.parametrize("inside", [".", "adapter", "deep/data.jsonl"])
def test_what_is_read_is_not_removed(tmp_path, inside):
    run = make(tmp_path / "run")
    (run.path / "deep").mkdir()
    (tmp_path / "link").symlink_to(run.path)
    source = tmp_path / "link" / inside
    for path in (run.path, tmp_path / "link"):
        with pytest.raises(MidblockError, match=r"holds .* itself, which this command reads"):
            overwrite(path, sources=[tmp_path / "other", source])
    assert (run.path / "deep").exists()
    overwrite(run.path, sources=[tmp_path, tmp_path / "run2"])
    assert not (run.path / "deep").exists()


def test_a_link_to_a_run_is_overwritten_where_it_leads(tmp_path):
    run = make(tmp_path / "run")
    (run.path / "deep").mkdir()
    (tmp_path / "mine").mkdir()
    (run.path / "linked").symlink_to(tmp_path / "mine")
    (tmp_path / "link").symlink_to(run.path)
    overwrite(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "run.json"]
    assert (tmp_path / "mine").exists()


def test_a_name_that_the_system_refuses(tmp_path):
    for behaviour in (Where(), Where(resume=True), Where(overwrite=True)):
        with pytest.raises(MidblockError, match=r"cannot write .*name too long"):
            RunFolder.open(tmp_path / ("x" * 300), request(), behaviour)


def test_a_kill_while_the_folder_is_opened_leaves_it_usable(tmp_path, monkeypatch):
    """Wherever the opening was killed: without a flag it begins or is refused, with one it begins."""
    run = make(tmp_path / "run")
    (run.path / "layers.csv").write_text("old")
    run.finish()
    (run.path / "config.yaml").write_text("seed: 7")
    (run.path / "config.yaml").chmod(0o400)
    monkeypatch.setattr("midblock.runs.folder._empty", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        overwrite(run.path)
    monkeypatch.undo()
    assert read_record(run.path)["status"] == "opening"
    assert standing(run.path, Draft(request())).empty
    assert resume(run.path).record["status"] == "running"
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "run.json"]


@pytest.mark.parametrize("left", [".run.json.4711.tmp", ".midblock.lock"])
def test_what_a_kill_in_the_first_moment_leaves_is_no_run(tmp_path, left):
    (tmp_path / left).write_text("")
    assert make(tmp_path).record["status"] == "running"


def test_an_unfinished_run_of_another_format_is_refused(tmp_path):
    run = make(tmp_path / "run")
    run.record |= {"format": 1, "versions": {**run.record["versions"], "midblock": "0.0.1"}}
    run.save()
    with pytest.raises(MidblockError, match=r"begun by midblock 0\.0\.1, .* cannot go on with \(--overwrite"):
        resume(run.path)
    run.finish()
    assert resume(run.path).done


def test_other_versions_are_noted(tmp_path):
    run = make(tmp_path / "run")
    assert run.resumption() == []
    run.record["versions"] = {**run.record["versions"], "midblock": "0.0.1", "torch": "1.0"}
    (note,) = run.resumption()
    assert "midblock 0.0.1 then, " in note
    assert "torch 1.0 then, " in note


def test_a_touched_file_of_data_is_looked_at_again_or_refused(tmp_path):
    """A finished run is read back without its data, so only the file's age can tell."""
    run = make(tmp_path / "run", inputs={DATA_FILES: [["a.jsonl", 3, 1]], "the data": "abc"})
    touched = Draft(request(inputs={DATA_FILES: [["a.jsonl", 3, 2]]}))
    assert RunFolder.check(run.path, touched, Where(resume=True))
    run.finish()
    with pytest.raises(MidblockError, match=r"the files of the data changed since"):
        RunFolder.check(run.path, touched, Where(resume=True))


def test_discarding_empties_a_run_of_ours_and_nothing_else(tmp_path):
    run = make(tmp_path / "run")
    (run.path / "figures").mkdir()
    discard(run.path)
    assert not list(run.path.iterdir())
    discard(tmp_path / "nothing")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "mine.txt").write_text("x")
    with pytest.raises(MidblockError, match="was not written by midblock"):
        discard(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "mine.txt").exists()


def test_a_run_half_discarded_is_begun_anew(tmp_path, monkeypatch):
    run = make(tmp_path / "run")
    (run.path / "figures").mkdir()

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("midblock.runs.folder.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        discard(run.path)
    monkeypatch.undo()
    assert standing(run.path, Draft(request())).empty
    RunFolder.open(run.path, request(), Where(resume=True))
    assert not (run.path / "figures").exists()
