"""Programs that hang, multiply, write, call out, end early or strike back, each of them really run."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from midblock.base import MidblockError
from midblock.evaluation.isolation import program
from midblock.evaluation.isolation.check import check_isolation
from midblock.evaluation.isolation.program import Limits, can_limit_reading, run_program
from midblock.evaluation.isolation.seccomp import ALLOW

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="programs are run on Linux alone")

SHORT = Limits(cpu_seconds=1, seconds=0.4, memory=2**28)
REFUSED = "PermissionError"
ASYNC = "import fcntl, os\nr, w = 1, 1\nfcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())"
RAISE = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))"


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_an_honest_program_passes_and_a_wrong_one_tells_why():
    solution = "def add(a, b):\n    return a + b"
    assert run_program(solution, "assert add(1, 2) == 3").passed
    wrong = run_program(solution, "assert add(1, 2) == 4, 'sums'")
    assert (wrong.passed, wrong.reason) == (False, "AssertionError: sums")
    assert run_program("def add(a, b:", "").reason.startswith("SyntaxError")


def test_the_standard_library_and_what_is_installed_can_be_imported():
    pytest.importorskip("numpy")
    solution = "import collections, dataclasses, decimal, hashlib, math, random, re, typing\nimport numpy as np"
    tests = "assert hashlib.md5(b'').hexdigest()[:4] == 'd41d' and np.eye(3).sum() == 3\n"
    record = "@dataclasses.dataclass\nclass Point:\n    x: int\nassert Point(1) == Point(1)"
    assert run_program(solution, tests + record).reason == ""


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("import os\nos._exit(0)", "ended with exit code 0 before its tests were through"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os\nos.kill(os.getpid(), 9)", "ended by signal 9 before its tests were through"),
        ("import ctypes\nctypes.string_at(0)", "ended by signal 11 before its tests were through"),
        ("import os\nos.kill(os.getppid(), 9)", REFUSED),
        ("import os\nos.killpg(os.getpgid(os.getppid()), 9)", REFUSED),
        (ASYNC, REFUSED),
        ("import os\nwhile True:\n    os.fork()", REFUSED),
        ("import subprocess\nsubprocess.run(['true'])", REFUSED),
        ("import multiprocessing as m\np = m.Process(target=print)\np.start()", REFUSED),
        ("import urllib.request as u\nu.urlopen('http://127.0.0.1:9')", "URLError: <urlopen error [Errno 1]"),
        ("import socket\nsocket.socketpair()", REFUSED),
        ("open('large', 'wb').write(bytes(2**20))", REFUSED),
        ("open('/tmp/midblock-was-here', 'w')", REFUSED),
        ("import os\nos.mkdir('folder')", REFUSED),
        ("import os, sys\nos.remove(sys.executable)", REFUSED),
        ("import os\nos.chmod('/tmp', 0)", REFUSED),
        (RAISE, "ValueError: not allowed to raise maximum limit"),
        ("x = [0] * 10**10", "MemoryError"),
        ("x = []\nwhile True:\n    x.append(bytes(10**6))", "MemoryError"),
        ("def f():\n    return f()\nf()", "RecursionError"),
        ("import time\ntime.sleep(60)", "took more than 0.4 s"),
        ("import os\nos.closerange(0, 64)\nimport time\ntime.sleep(60)", "took more than 0.4 s"),
        ("import os\nwhile True:\n    os.write(3, bytes(4096))", "took more to report than a program has"),
        ("import os\nos.write(3, b'{\"passed\": true}\\n')\nos._exit(0)", "ended with exit code 0"),
        ("input()", "EOFError"),
    ],
)
def test_what_a_program_tries(attack, reason):
    before = children()
    outcome = run_program(attack, "", SHORT)
    assert not outcome.passed
    assert outcome.reason.startswith(reason)
    assert children() == before
    assert not Path("/tmp/midblock-was-here").exists()


def test_what_it_prints_goes_nowhere(capfd):
    assert run_program(
        "import sys\nfor i in range(10**5):\n    print('x' * 99, file=(sys.stdout, sys.stderr)[i % 2])", ""
    ).passed
    assert capfd.readouterr() == ("", "")


def test_its_folder_goes_and_its_surroundings_are_not_this_processs(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    reason = run_program("import os\nraise ValueError(os.getcwd(), os.listdir(), 'HF_TOKEN' in os.environ)", "").reason
    folder = Path(reason.split("'")[1])
    assert folder.name.startswith("midblock-")
    assert not folder.exists()
    assert "[], False" in reason


@pytest.mark.skipif(not can_limit_reading(), reason="this kernel has no Landlock")
@pytest.mark.parametrize(
    "place",
    [
        pytest.param("/etc/passwd", id="of the machine"),
        pytest.param(__file__, id="of the project"),
        pytest.param("/proc/{pid}/environ", id="of its parent"),
    ],
)
def test_it_reads_what_python_needs_and_nothing_else(place):
    place = place.format(pid=os.getpid())
    assert run_program(f"open({place!r}).read()", "").reason.startswith(REFUSED)


def test_it_ends_with_the_process_that_started_it():
    child = os.fork()
    if not child:
        try:
            run_program("import time\ntime.sleep(60)", "", Limits(seconds=60.0))
        finally:
            os._exit(0)  # or it would go on as a second run of these tests
    own = Path(f"/proc/{child}/task/{child}/children")
    until(lambda: own.read_text().split())
    (grandchild,) = own.read_text().split()
    until(lambda: "Seccomp:\t2" in Path(f"/proc/{grandchild}/status").read_text())  # it runs what it was asked to
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    until(lambda: _ended(grandchild))


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        os.sched_yield()


def _ended(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_every_limit_holds_here():
    assert bool(check_isolation()) != can_limit_reading()


def test_a_limit_that_does_not_hold_is_found(monkeypatch):
    everything = ALLOW.to_bytes(4, "little")
    monkeypatch.setattr(program, "build_filter", lambda *of: b"\x06\0\0\0" + everything)
    with pytest.raises(MidblockError, match="the limit on the network does not hold"):
        check_isolation.__wrapped__()


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(program, "build_filter", lambda *of: bytes(8))
    with pytest.raises(MidblockError, match=r"cannot be run here: seccomp \(Invalid argument\)"):
        run_program("x = 1", "")
    monkeypatch.setattr(program.platform, "machine", lambda: "riscv64")
    with pytest.raises(MidblockError, match="riscv64 has no seccomp filter that is known"):
        run_program("x = 1", "")
