import pytest
import torch

from midblock.runs.steps import run_steps
from midblock.trace import RowStore


def work(store, done, stop=None):
    def step(number):
        if number == stop:
            raise KeyboardInterrupt
        done.append(number)
        store.update("rows", torch.tensor([number]), torch.full((1, 2), float(number)))

    return [(10.0 * number, lambda number=number: step(number)) for number in range(1, 6)]


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
