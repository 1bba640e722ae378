"""The process of `lifl up -d`: a node's config on stdin, one JSON report on stdout, then `lifld` on its own.

On stdin, behind the line of the config, there may be the line of a token.

The parent reads to the end of the report's pipe, so stdin and stdout go to /dev/null before the node lives
on; the log goes to the state folder.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from lifl.core.config.node import NodeConfig, parse_node
from lifl.core.errors import LiflError
from lifl.core.trust.tokens import read_token


class ReadyPipe:
    """The one message to the parent: ``{"ready": ...}`` or ``{"error": ...}``."""

    def __init__(self) -> None:
        self._fd: int | None = os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)

    def send(self, kind: str, content: Any) -> None:
        """Send and close; later calls do nothing."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        with os.fdopen(fd, "wb") as pipe:
            pipe.write(msgspec.json.encode({kind: content}))


def main() -> int:
    """Run the node; the exit code is 1 when it could not start."""
    given, _, line = sys.stdin.buffer.read().partition(b"\n")
    config: NodeConfig = parse_node(msgspec.json.decode(given))
    token = read_token(line.decode()) if line else None
    pipe = ReadyPipe()
    from lifl.confine.account import Account
    from lifl.node.daemon import run

    try:
        with Account(config.user).lowered():  # root may be kept out of it, where it has few capabilities
            os.chdir(config.state_dir)
        run(config, lambda info: pipe.send("ready", info), log_to_file=True, token=token)
    except LiflError as error:
        pipe.send("error", str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
