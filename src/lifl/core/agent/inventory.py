"""What a node has, as it tells a coordinator that it is connected to (again)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lifl.core.agent.branch import told
from lifl.core.agent.job_replica import JobReplica
from lifl.core.agent.uploads import Uploads
from lifl.core.limits import INVENTORY_BYTES_MAX
from lifl.core.protocol import cluster as p
from lifl.core.protocol.contribution import pack_contribution


def inventory_of(
    replicas: Mapping[int, JobReplica],
    uploads: Uploads,
    orphans: Iterable[int],
    drains: bool,
    labels: Mapping[str, str],
) -> p.Inventory:
    """Return what this node has of all jobs.

    What is beyond `INVENTORY_BYTES_MAX` is left out: it counts as lost, and is asked for again.
    """
    held = []
    left = INVENTORY_BYTES_MAX
    for number, replica in replicas.items():
        for branch in replica.branches():
            asked = uploads.asked(number, branch)
            left -= sum(len(pack_contribution(member)) for member in (*asked, *branch.accepted.values()))
            at = (number, branch.epoch, branch.number)
            if left >= 0:
                held.append(p.BranchHeld(*at, told(branch.accepted.values()), told(asked), branch.closed))
    return p.Inventory(tuple(replicas), tuple(held), tuple(orphans), drains=drains, labels=dict(labels))
