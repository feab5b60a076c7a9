"""The backend `ray`: Ray schedules trials on this machine or a cluster, and tries one again whose node went away.

The study's folder has to be the same place for every node.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from typing import Any

from midblock.base import MidblockError
from midblock.base.json_file import shown
from midblock.runs.stopping import STOPPING
from midblock.studies.study.crew import Crew, Ended, Work, environment
from midblock.studies.study.extras import extra
from midblock.studies.study.settings import StudySettings
from midblock.studies.study.worker import logged

ANSWER = 9.0  # seconds for a cluster to answer, the look at its port included
PORT = 3.0  # seconds of them for the port
TICK = 0.5
TRIES_AGAIN = 2  # where a node or a process goes away; a trial's own failure is no reason


def check_ray(settings: StudySettings) -> None:
    """Raise MidblockError where Ray is not installed, or nobody listens at its address."""
    extra("ray", "ray")
    if settings.ray_address is not None:
        _look_at_port(settings.ray_address)


def run_by_ray(works: Sequence[Work], crew: Crew, ended: Ended) -> None:
    """Do the works as Ray's tasks, each in a process of its own.

    Raises:
        MidblockError: Ray is not installed, or its address does not answer.
    """
    ray = extra("ray", "ray")
    _connect(ray, crew)
    try:
        options = {"num_cpus": crew.threads, "num_gpus": crew.settings.gpus}
        task = ray.remote(max_calls=1, max_retries=TRIES_AGAIN, **options)(logged)
        running = {task.remote(*crew.arguments(work)): work for work in works}
        while running:
            done, _ = ray.wait(list(running), timeout=TICK)
            for each in done:
                ended(running.pop(each), _problem(ray, each))
            STOPPING.check()
    finally:
        ray.shutdown()


def _problem(ray: Any, reference: Any) -> str:
    try:
        ray.get(reference)
    except Exception as error:  # Ray's own, or what the process raised before the trial began
        return f"Ray: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    return ""


def _connect(ray: Any, crew: Crew) -> None:
    """Join the cluster, or start one of this machine's."""
    address, options = crew.settings.ray_address, {"runtime_env": {"env_vars": environment(crew.threads)}}
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if address is None:
        cpus = crew.threads * crew.settings.jobs
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet, **options)
        return
    failed: list[Exception] = []

    def join() -> None:
        try:
            ray.init(address=address, **quiet, **options)
        except Exception as error:
            failed.append(error)

    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    joining.join(ANSWER - PORT)
    if joining.is_alive():
        raise _silent(address)
    if failed:
        raise MidblockError(f"Ray at {shown(address)}: {' '.join(str(failed[0]).split())[:200]}", hint=HINT)


HINT = "`ray status` tells the address of a cluster; leave it out for one of this machine's own"


def _look_at_port(address: str) -> None:
    """Raise MidblockError where nobody listens: Ray itself would try for a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto" or (address.startswith("ray://") and not colon):
        return
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise MidblockError(f"{shown(address)} is no address of Ray", hint="auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PORT).close()
    except OSError as error:
        raise _silent(address) from error


def _silent(address: str) -> MidblockError:
    return MidblockError(f"Ray at {shown(address)} does not answer", hint=HINT)
