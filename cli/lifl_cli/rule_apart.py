"""A user's rule, loaded in a process of its own to see whether it can be used.

Whatever its code does to the process that imports it (it ends it, crashes it, prints), the command line lives to tell.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import msgspec

from lifl.core.config.job import JobConfig
from lifl.core.errors import ConfigError


class _Told(msgspec.Struct):
    """What the child says: the names of the rule's states, or the key at fault and its problem."""

    states: tuple[str, ...] = ()
    path: str = ""
    problem: str = ""


def states_apart(config: JobConfig, folder: str) -> tuple[str, ...]:
    """Return what a child finds out.  Raise `ConfigError`, also when its process ended in the middle."""
    from lifl.node.process_state import ended_text

    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else the child, which has a copy, writes it once more
    with open(os.memfd_create("lifl-rule"), "rb") as answer:  # a pipe would be waited for while a grandchild has it
        child = os.fork()
        if child == 0:
            _tell(config, folder, answer.fileno())
        try:
            _, status = os.waitpid(child, 0)
        except BaseException:  # Ctrl-C: the child's code may not mind it
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        try:
            told = msgspec.json.decode(answer.read(), type=_Told)
        except msgspec.DecodeError:
            own = {"aggregation.rule": config.aggregation.rule} if ":" in config.aggregation.rule else {}
            key, name = next(iter((own | config.functions).items()))
            text = f"{name} cannot be used: loading it ended the process with {ended_text(status)}"
            raise ConfigError(key, text) from None
    if told.problem:
        raise ConfigError(told.path, told.problem)
    return told.states


def _tell(config: JobConfig, folder: str, fd: int) -> NoReturn:
    """Be the child: load the rule, write what is to be told, and end."""
    from lifl.rules.load import bound_recursion, states_of

    status = 1
    try:
        os.dup2(2, 1)  # what the rule prints is no part of our answer
        sys.stdout = sys.stderr
        bound_recursion()
        try:
            told = _Told(states_of(config, folder))
        except ConfigError as error:
            told = _Told((), error.path, error.problem)
        sys.stderr.flush()
        os.pwrite(fd, msgspec.json.encode(told), 0)
        status = 0
    finally:
        os._exit(status)
