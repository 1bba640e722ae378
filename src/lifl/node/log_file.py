"""Where `lifld` logs to: a file of its state folder, or its terminal."""

from __future__ import annotations

import logging
import logging.handlers
import os
from io import TextIOWrapper
from pathlib import Path

from lifl.node.modes import open_private

LOG_BYTES_MAX = 4 * 1024 * 1024
LOG_FILES_MAX = 3


class PrivateLog(logging.handlers.RotatingFileHandler):
    """A log whose files are their user's alone."""

    def _open(self) -> TextIOWrapper:
        os.close(open_private(Path(self.baseFilename), os.O_WRONLY))
        return super()._open()


def set_up_log(folder: Path, log_to_file: bool) -> None:
    """Log into the folder, or to standard error."""
    handler: logging.Handler = logging.StreamHandler()
    if log_to_file:
        handler = PrivateLog(folder / "lifld.log", maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES_MAX)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("lifl")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if log_to_file else logging.WARNING)
