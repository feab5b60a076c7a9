"""The system calls that a model's program may make: a seccomp filter, which holds for root as for anyone.

It is a list of what is allowed, so what a kernel learns tomorrow is refused too. A program may compute, sleep, read
files and write to what is open when it starts. It may open nothing for writing, start no process or thread, open no
socket, send no signal but to itself, and change no limit. Filters are made by the process that starts the program,
which needs nothing of midblock then.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

ALLOW, REFUSE, END = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE: the call fails with EPERM
LOAD, AND, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06  # instructions of classic BPF
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16  # offsets in `struct seccomp_data`
X32 = 0x40000000  # numbers from here on are x86_64's other set of calls
ANY = 0xFFFFFFFF

# Of open's flags: for writing, both, O_CREAT, O_TRUNC, O_APPEND.
WRITING = 0o3 | 0o100 | 0o1000 | 0o2000
TERMINAL = (0x5401, 0x5413, 0x5450, 0x5451)  # ioctl: is it one, its size, keep or close at exec
DUPLICATE = (0, 1, 2, 3, 1030)  # fcntl: a second descriptor, and its flags; nothing that sends signals


@dataclass(frozen=True)
class Words:
    """A condition on a call: of an argument's half, the bits of `mask` are one of `values`."""

    argument: int
    values: tuple[int, ...]
    mask: int = ANY
    upper: bool = False

    @property
    def offset(self) -> int:
        """Where it stands; both machines are little-endian."""
        return ARGUMENTS + 8 * self.argument + 4 * self.upper


@dataclass(frozen=True)
class Machine:
    """Calls by their numbers on one kind of machine."""

    audit: int
    numbers: Mapping[str, int]


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, _, number in (each.partition("=") for each in text.split())}


MACHINES: Mapping[str, Machine] = {
    "x86_64": Machine(
        0xC000003E,
        _numbers(
            "read=0 write=1 open=2 close=3 stat=4 fstat=5 lstat=6 poll=7 lseek=8 mmap=9 mprotect=10 munmap=11 brk=12 "
            "rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15 ioctl=16 pread64=17 readv=19 writev=20 access=21 "
            "select=23 sched_yield=24 mremap=25 madvise=28 dup=32 dup2=33 pause=34 nanosleep=35 getitimer=36 alarm=37 "
            "setitimer=38 getpid=39 exit=60 kill=62 uname=63 fcntl=72 getcwd=79 chdir=80 readlink=89 gettimeofday=96 "
            "getrlimit=97 getrusage=98 sysinfo=99 times=100 getuid=102 getgid=104 geteuid=107 getegid=108 getppid=110 "
            "sigaltstack=131 arch_prctl=158 gettid=186 time=201 futex=202 sched_getaffinity=204 getdents64=217 "
            "set_tid_address=218 restart_syscall=219 fadvise64=221 clock_gettime=228 clock_getres=229 "
            "clock_nanosleep=230 exit_group=231 tgkill=234 openat=257 newfstatat=262 readlinkat=267 faccessat=269 "
            "pselect6=270 ppoll=271 set_robust_list=273 dup3=292 prlimit64=302 getrandom=318 membarrier=324 statx=332 "
            "rseq=334 faccessat2=439"
        ),
    ),
    "aarch64": Machine(
        0xC00000B7,
        _numbers(
            "getcwd=17 dup=23 dup3=24 fcntl=25 ioctl=29 faccessat=48 chdir=49 openat=56 close=57 getdents64=61 "
            "lseek=62 read=63 write=64 readv=65 writev=66 pread64=67 pselect6=72 ppoll=73 readlinkat=78 newfstatat=79 "
            "fstat=80 exit=93 exit_group=94 set_tid_address=96 futex=98 set_robust_list=99 nanosleep=101 "
            "getitimer=102 setitimer=103 clock_gettime=113 clock_getres=114 clock_nanosleep=115 "
            "sched_getaffinity=123 sched_yield=124 restart_syscall=128 kill=129 tgkill=131 sigaltstack=132 "
            "rt_sigaction=134 rt_sigprocmask=135 rt_sigreturn=139 times=153 uname=160 getrlimit=163 getrusage=165 "
            "gettimeofday=169 getpid=172 getppid=173 getuid=174 geteuid=175 getgid=176 getegid=177 gettid=178 "
            "sysinfo=179 brk=214 munmap=215 mremap=216 mmap=222 fadvise64=223 mprotect=226 madvise=233 prlimit64=261 "
            "getrandom=278 membarrier=283 statx=291 rseq=293 faccessat2=439"
        ),
    ),
}


def conditions(process: int) -> Mapping[str, tuple[Words, ...]]:
    """Calls that are allowed with some arguments alone.

    Args:
        process: the one that the filter is for; it may send signals to itself.
    """
    return {
        "open": (Words(1, (0,), WRITING),),
        "openat": (Words(2, (0,), WRITING),),
        "ioctl": (Words(1, TERMINAL),),
        "fcntl": (Words(1, DUPLICATE),),
        "kill": (Words(0, (process,)),),
        "tgkill": (Words(0, (process,)),),
        "prlimit64": (Words(2, (0,)), Words(2, (0,), upper=True)),  # to read limits, not to set them
    }


def build_filter(machine: str, process: int) -> bytes:
    """The filter as the kernel takes it, an array of `struct sock_filter`.

    Args:
        machine: a name of `MACHINES`.
        process: the id of the process that will run under it.
    """
    known, limited = MACHINES[machine], conditions(process)
    lines = [(LOAD, 0, 0, MACHINE), (IF_EQUAL, 1, 0, known.audit), (RETURN, 0, 0, END)]
    lines += [(LOAD, 0, 0, NUMBER), (IF_AT_LEAST, 0, 1, X32), (RETURN, 0, 0, END)]
    for name, number in known.numbers.items():
        block = [line for words in limited.get(name, ()) for line in _check(words)] + [(RETURN, 0, 0, ALLOW)]
        lines += [(IF_EQUAL, 0, len(block), number), *block]
    lines.append((RETURN, 0, 0, REFUSE))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _check(words: Words) -> list[tuple[int, int, int, int]]:
    """Go on behind these lines where a condition holds; else refuse."""
    count = len(words.values)
    tries = [(IF_EQUAL, count - place, 0, value) for place, value in enumerate(words.values)]
    return [(LOAD, 0, 0, words.offset), (AND, 0, 0, words.mask), *tries, (RETURN, 0, 0, REFUSE)]
