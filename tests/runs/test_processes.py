from midblock.runs.processes import barrier, main_process, rank, world_size


def test_a_lone_process_is_the_main_one(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (rank(), world_size(), main_process()) == (0, 1, True)
    barrier()


def test_torchrun_tells_which_one_this_is(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (rank(), world_size(), main_process()) == (3, 4, False)
