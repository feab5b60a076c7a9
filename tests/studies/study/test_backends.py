"""Ray and submitit give what this process gives; an engine that does not answer is one line."""

import socket
from pathlib import Path

import pandas as pd
import pytest

from midblock.base import MidblockError
from midblock.studies.study import by_ray
from midblock.studies.study.by_submitit import check_submitit, run_by_submitit
from midblock.studies.study.crew import Crew
from midblock.studies.study.extras import extra
from midblock.studies.study.settings import StudySettings
from midblock.studies.study.study import study


@pytest.fixture
def plain(here, plan):
    """What this process gives for a small arm and the base."""
    plan["tune"] |= {"max_steps": 1}
    plan["grid"] = {"layers": ["010"]}
    plan["evaluate"] |= {"num_samples": 4, "max_new_tokens": 1}
    return plan, study(plan, output_dir="here", backend="here", threads=1)


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    drop = ["seconds", "peak_memory_gb"]
    pd.testing.assert_frame_equal(one.drop(columns=drop), other.drop(columns=drop), check_exact=True)


def test_ray_with_two_workers_and_submitits_local_executor_give_the_same(plain):
    plan, expected = plain
    pytest.importorskip("submitit")
    found = study(plan, output_dir="jobs", backend="submitit", cluster="local", jobs=2, threads=1)
    same(found.trials, expected.trials)
    assert list(Path("jobs/jobs").glob("*_result.pkl"))  # submitit's own, inside the study
    pytest.importorskip("ray")
    found = study(plan, output_dir="ray", backend="ray", jobs=2, threads=1)
    same(found.trials, expected.trials)


def crew(**options):
    return Crew(StudySettings(**options), Path("logs"))


@pytest.mark.parametrize("address", ["localhost:1", "ray://localhost:1"])
def test_an_address_where_nobody_listens_is_one_line_and_nothing_is_written(here, plan, address):
    pytest.importorskip("ray")
    with pytest.raises(MidblockError, match="does not answer") as raised:
        study(plan, output_dir="out", backend="ray", ray_address=address)
    assert "\n" not in str(raised.value)
    assert not Path("out").exists()


@pytest.mark.parametrize("address", ["nowhere", "host:port", "host:99999"])
def test_what_is_no_address_is_told(address):
    with pytest.raises(MidblockError, match="is no address of Ray"):
        by_ray._look_at_port(address)


def test_a_listener_that_is_no_ray_is_told_in_time(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(by_ray, "ANSWER", by_ray.PORT + 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"ray://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MidblockError, match="Ray at"):
            by_ray._connect(ray, crew(backend="ray", ray_address=address))


def test_a_missing_engine_names_its_extra():
    with pytest.raises(MidblockError, match=r'needs the package rayy \(pip install "midblock\[ray\]"\)'):
        extra("rayy", "ray")


def test_an_unknown_cluster_is_told_with_the_nearest():
    pytest.importorskip("submitit")
    with pytest.raises(MidblockError, match=r"unknown cluster 'slrum' \(did you mean 'slurm'\?\)"):
        check_submitit(StudySettings(backend="submitit", cluster="slrum"))


def test_where_there_is_no_slurm_it_is_told(monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MidblockError, match="submitit: ") as raised:
        run_by_submitit([], crew(backend="submitit", cluster="slurm"), lambda work, problem: None)
    assert "--cluster local" in str(raised.value)
