import pytest
import torch

from midblock.base import MidblockError
from midblock.runs.steps import Step, run_steps
from midblock.runs.stopping import STOPPING, Stopped
from midblock.trace import RowStore


def work(store, done, stop=None):
    def step(number):
        if number == stop:
            raise KeyboardInterrupt
        done.append(number)
        store.update("rows", torch.tensor([number]), torch.full((1, 2), float(number)))

    return [Step(10.0 * number, lambda number=number: step(number), ("rows",), (number,)) for number in range(1, 6)]


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_stopped_run_goes_on_where_it_was(tmp_path, stop):
    done, heard = [], []
    store = RowStore()
    with pytest.raises(KeyboardInterrupt):
        run_steps(work(store, done, stop), store, tmp_path, heard.append, save_seconds=0)
    assert done == list(range(1, stop))
    store, again = RowStore(), []
    run_steps(work(store, again), store, tmp_path, heard.append, save_seconds=0)
    assert again == list(range(stop, 6))
    assert sum(heard) == 150 + sum(10 * number for number in range(1, stop))
    assert store.finish()["rows"].values[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_without_a_folder_rows_stay_in_memory():
    store, done = RowStore(), []
    run_steps(work(store, done), store, None, lambda cost: None)
    assert done == [1, 2, 3, 4, 5]
    assert len(store.rows["rows"]) == 5


def test_what_was_promised_and_is_missing_is_an_error():
    store = RowStore()
    steps = [*work(store, []), Step(1.0, lambda: None, ("rows",), (6, 7))]
    with pytest.raises(MidblockError, match="rows holds 5 of 7 samples"):
        run_steps(steps, store, None, lambda cost: None)
    with pytest.raises(MidblockError, match="others holds 0 of 1 samples"):
        run_steps([Step(1.0, lambda: None, ("others",), (0,))], RowStore(), None, lambda cost: None)


def test_pieces_of_another_plan_are_refused(tmp_path):
    store, planned = RowStore(), {"cost": 1.0, "keys": ("rows",), "index": (1,)}
    add = lambda store: lambda: store.update("rows", torch.tensor([1]), torch.zeros(1, 2))  # noqa: E731
    run_steps([Step(do=add(store), **planned)], store, tmp_path, lambda cost: None, owner="run")
    for change in ({"cost": 2.0}, {"keys": ("rows", "more")}, {"index": (2,)}):
        with pytest.raises(MidblockError, match="another plan"):
            run_steps([Step(do=add(store), **planned | change)], RowStore(), tmp_path, lambda cost: None, owner="run")
    again = RowStore()
    assert run_steps([Step(do=add(again), **planned)], again, tmp_path, lambda cost: None, owner="run") == []


def test_a_run_whose_time_is_over_saves_the_step_it_is_at(tmp_path):
    store, done = RowStore(), []
    with pytest.raises(Stopped, match="--max-time"), STOPPING.within("0.000001"):
        run_steps(work(store, done), store, tmp_path, lambda cost: None)
    assert (done, [path.name for path in tmp_path.iterdir()]) == ([1], ["000001.safetensors"])
    store = RowStore()
    run_steps(work(store, done), store, tmp_path, lambda cost: None)
    assert done == [1, 2, 3, 4, 5]
    assert store.finish()["rows"].values[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_what_another_number_of_processes_kept_is_found_anew_and_said(tmp_path):
    store, done = RowStore(), []
    (tmp_path / "process0of2").mkdir()
    (tmp_path / "process1of2").mkdir()
    notes = run_steps(work(store, done), store, tmp_path, lambda cost: None)
    assert notes == ["What 2 process(es) had kept was found anew by 1."]
    assert done == [1, 2, 3, 4, 5]
