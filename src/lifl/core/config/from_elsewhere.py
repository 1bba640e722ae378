"""A job whose file lies on another machine than the node: what it names of that machine, the node does not have.

Its model comes along, and its list of clients; a rule of one's own, and folders, are the node's.
"""

from __future__ import annotations

import msgspec

from lifl.core.config.job import JobConfig
from lifl.core.errors import ConfigError

OWN_CODE = "is code of your own, which has to lie on the node: submit the job there"
ITS_FOLDER = "is a folder of the node: give an absolute path"


def of_the_node(config: JobConfig) -> JobConfig:
    """Return a job as the node is to run it, but for its model and its list of clients.

    Raise `ConfigError` for what the node cannot have.
    """
    if ":" in config.aggregation.rule:
        raise ConfigError("aggregation.rule", f"{config.aggregation.rule} {OWN_CODE}")
    for key, function in config.functions.items():
        raise ConfigError(key, f"{function} {OWN_CODE}")
    told = config.told
    for key, folder in (
        ("checkpoint.folder", str(config.checkpoint.folder or "")),
        ("metrics.address", "" if told.tracker == "mlflow" else str(told.address or "")),
    ):
        if folder and not folder.startswith("/"):
            raise ConfigError(key, ITS_FOLDER)
    aggregation = msgspec.structs.replace(config.aggregation, rule_folder="/")
    return msgspec.structs.replace(config, aggregation=aggregation)
