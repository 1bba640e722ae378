"""What a signal does to each process of a node: none but those that must end a process, or stop it, does so by itself.

A signal that nobody handles ends a process as ``kill -9`` does.  `lifld` ends in good order by `ENDS`, and ends its
children itself: they take no notice of these.  Those of `STRAY` have no meaning here, and do nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from signal import Signals

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU)
"""End a node in good order.  A terminal sends SIGHUP when it is closed, and SIGQUIT by a key, as SIGINT; SIGXCPU
says that the time of `ulimit -t` is over, and SIGKILL follows: each asks for an end, and none to leave things undone.
"""
STRAY = (
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR),
    *(signal.SIGSTKFLT, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)),
)
STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
KILLS = (
    *(signal.SIGKILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS),
    signal.SIGTRAP,
)
"""Cannot be taken, or say that the process itself is broken."""
HARMLESS = (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGPIPE, signal.SIGXFSZ)
"""The kernel, or Python, has them do nothing: a write into a pipe or a file that takes no more says so itself."""


END_S = 45
"""What `lifld` has, beside the time for its rounds, to end: more than it waits for its children one by one."""


_early: list[int] = []


def heed_early() -> None:
    """Have a signal of `ENDS` raise `KeyboardInterrupt`, once, until `lifld` heeds it itself.

    Whoever is interrupted may make another error of that, or nothing at all: so it is known besides (`came_early`).
    """
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)


def came_early() -> bool:
    """Return whether such a signal came since `heed_early`, before `lifld` heeded it itself."""
    return bool(_early)


@contextmanager
def heeded_at_once() -> Iterator[None]:
    """Have a signal of `ENDS` raise `KeyboardInterrupt` meanwhile, once: for what keeps the event loop waiting."""
    before = {number: signal.getsignal(number) for number in ENDS}
    heed_early()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _frame: object) -> None:
    _early.append(number)
    if len(_early) == 1:
        raise KeyboardInterrupt


def ignore_stray() -> None:
    """Have this process, and those that it starts, take no notice of `STRAY`."""
    _ignore(STRAY)


def end_within(seconds: int = END_S) -> None:
    """Have the kernel end this process if it has not ended by then, whatever it waits for.

    Python waits for ever for a thread that has not begun, as where there is no memory for one.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def leave_to_lifld() -> None:
    """Have this process, a child of `lifld`, take no notice of what is for `lifld` or for nobody."""
    _ignore((*ENDS, *STRAY))


def _ignore(numbers: Iterable[int]) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def names(numbers: Iterable[int]) -> str:
    """Return their names, real-time signals as one."""
    known = {each.value: each.name for each in Signals}
    text = ", ".join(known[number] for number in numbers if not signal.SIGRTMIN <= number <= signal.SIGRTMAX)
    return f"{text}, SIGRTMIN to SIGRTMAX" if signal.SIGRTMAX in numbers else text
