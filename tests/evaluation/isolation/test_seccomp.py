"""The filter on both machines, run here step by step as the kernel runs it."""

import struct

import pytest

from midblock.evaluation.isolation.seccomp import ALLOW, END, MACHINES, REFUSE, build_filter

PROCESS = 4321
WRITE_ONLY, READ_WRITE, CREATE, TRUNCATE, CLOSE_ON_EXEC = 1, 2, 0o100, 0o1000, 0o2000000


def decide(machine, name, *arguments, audit=None, number=None):
    """What the filter says of a call; a name that is not in its table is any other call."""
    known = MACHINES[machine]
    number = known.numbers.get(name, 999) if number is None else number
    data = struct.pack("<IIQ6Q", number, audit or known.audit, 0, *(*arguments, *[0] * (6 - len(arguments))))
    code = build_filter(machine, PROCESS)
    lines = [struct.unpack_from("=HBBI", code, place) for place in range(0, len(code), 8)]
    held = place = 0
    while True:
        instruction, if_true, if_false, value = lines[place]
        place += 1
        if instruction == 0x20:
            held = struct.unpack_from("<I", data, value)[0]
        elif instruction == 0x54:
            held &= value
        elif instruction == 0x06:
            return value
        else:
            true = held == value if instruction == 0x15 else held >= value
            place += if_true if true else if_false


@pytest.fixture(params=sorted(MACHINES))
def machine(request):
    return request.param


def test_what_computing_needs_is_allowed(machine):
    for name in ("read", "write", "mmap", "brk", "futex", "exit_group", "getrandom", "clock_nanosleep"):
        assert decide(machine, name) == ALLOW


@pytest.mark.parametrize(
    "name", ["socket", "connect", "clone", "clone3", "execve", "ptrace", "unlinkat", "io_uring_setup"]
)
def test_whatever_is_not_listed_is_refused(machine, name):
    assert decide(machine, name) == REFUSE


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [
        (0, ALLOW),
        (CLOSE_ON_EXEC, ALLOW),
        (WRITE_ONLY, REFUSE),
        (READ_WRITE | CLOSE_ON_EXEC, REFUSE),
        (CREATE, REFUSE),
        (TRUNCATE, REFUSE),
    ],
)
def test_files_are_opened_for_reading_alone(machine, flags, verdict):
    assert decide(machine, "openat", 3, 0x7000, flags) == verdict


def test_signals_go_to_the_process_itself_alone(machine):
    for name in ("kill", "tgkill"):
        assert decide(machine, name, PROCESS, PROCESS, 9) == ALLOW
        assert decide(machine, name, PROCESS - 1, PROCESS, 9) == REFUSE
        assert decide(machine, name, 2**64 - 1, PROCESS, 9) == REFUSE  # -1: every process


def test_limits_are_read_and_not_set(machine):
    assert decide(machine, "prlimit64", 0, 7, 0, 0x7000) == ALLOW
    assert decide(machine, "prlimit64", 0, 7, 0x7000, 0) == REFUSE
    assert decide(machine, "prlimit64", 0, 7, 0x7000 << 32, 0) == REFUSE  # where the lower half of an address is 0


def test_descriptors_send_no_signals(machine):
    set_owner, duplicate = 8, 1030
    assert decide(machine, "fcntl", 3, duplicate) == ALLOW
    assert decide(machine, "fcntl", 3, set_owner, 1) == REFUSE


def test_calls_of_another_machine_end_the_process(machine):
    assert decide(machine, "read", audit=0x40000003) == END
    assert decide(machine, "read", number=0x40000000) == END
