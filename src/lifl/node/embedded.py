"""The process of a node that a program starts for itself (`aggregator/local_node.py`): it ends with that program.

Its config is the first line on stdin, its one report (JSON, a line) goes to stdout.  When stdin ends, the program is
gone, or wants no node any more: the node goes down, and its state folder with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading

import msgspec

from lifl.core.config.node import NodeConfig, parse_node
from lifl.core.errors import LiflError


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Run the node; the exit code is 1 when it could not start."""
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(0, 1)):
        line += piece
    config: NodeConfig = parse_node(msgspec.json.decode(line))
    out = os.dup(1)
    os.dup2(2, 1)
    from lifl.node.daemon import run

    def tell(kind: str, content: object) -> None:
        os.write(out, msgspec.json.encode({kind: content}) + b"\n")

    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the program's, which ends the node when it ends
    try:
        run(config, lambda info: tell("ready", info), log_to_file=True)
    except LiflError as error:
        tell("error", str(error))
        return 1
    shutil.rmtree(config.state_dir, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
