"""What the coordinator and the agents of a cluster say to each other.

Every node has an agent, which owns the node's arena and workers; one node has the coordinator, which owns the jobs:
which client is selected, which update counts, what is committed.  *Orders* go to an agent, *reports* come back, each
with the same types whether the two share a process or a network lies between them.

A round is planned as *branches*: a branch is one node's tree, for some updates.  Branch 0 has the top, which takes the
partials of the others too.  When a node dies its branch is forgotten by the top, and a new branch, with another number,
takes its place.  (number, epoch, branch) names a branch on the wire: the epoch fences off what an earlier attempt left
behind, the branch what a node that was declared dead has.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from lifl.core.config.aggregation import AggregationSection
from lifl.core.config.job import QuotaSection
from lifl.core.fields import (
    Address,
    ArenaBytes,
    Bits64,
    Count,
    Digests,
    Message,
    Metrics,
    Name,
    Path,
    Secret,
    StateNames,
    Suspects,
    Tensors,
    Text,
    TrainablePatterns,
    Weight,
    Word,
)
from lifl.core.limits import BRANCH_UPDATES_MAX, BRANCHES_MAX, CLIENTS_PER_ROUND_MAX, COUNT_MAX, MEMBERS_PER_FRAME_MAX
from lifl.core.planning.client_list import Told
from lifl.core.planning.keeping import Kept
from lifl.core.protocol.evaluations import EvaluateModel, ModelEvaluated
from lifl.core.protocol.gateway import TellClient
from lifl.core.protocol.user_calls import CallFunction, FunctionReturned

Contributions = Annotated[tuple[tuple[Name, Weight, Metrics], ...], msgspec.Meta(max_length=MEMBERS_PER_FRAME_MAX)]
"""Client, weight and metrics of each update in a branch or a partial."""
Updates = Annotated[int, msgspec.Meta(ge=0, le=BRANCH_UPDATES_MAX)]
Branches = Annotated[int, msgspec.Meta(ge=0, le=BRANCHES_MAX)]

# ---- orders ------------------------------------------------------------------------------------------------------


class OpenJob(Message, frozen=True):
    """Make a job ready: `round` is that of its current model.

    With `path` the agent loads model and states from files; without, it fetches the model when it is needed.
    Without `adopt`, what an earlier life of the node has sealed for the job is freed.  `client_options` are for those
    who are selected.  `quota` is told to nodes that know of it, when it limits anything; `durability`
    when it is ``disk``: then an update is stored (`protocol/journal.py`) before it counts as sealed; `owner`, who has
    submitted it, when that is known.
    Of a job that is open here already `client_options` alone are taken.
    `fold` is told at home for a session of folds: its model comes from its host, or is what an earlier life has sealed,
    and the answer is FoldAdopted, then JobOpened.
    `trainable` is told where the job has such patterns, to nodes that know of them: an update may lack some `tensors`.
    `evaluates` is told at home where functions of the user's are called (`user_calls.py`): they meet no other job.
    `listed` is told where the job lists its clients, to nodes that know of it: its models go to no others.
    `room_bytes` is told at home where the job has less room there than a whole round needs: others fold its updates.
    """

    number: Count
    job: Name
    aggregation: AggregationSection
    clients_per_round: Annotated[int, msgspec.Meta(ge=1, le=CLIENTS_PER_ROUND_MAX)]
    tensors: Tensors
    states: StateNames
    round: Count
    path: Path = ""
    state_path: Path = ""
    adopt: bool = False
    client_options: dict[str, Any] = msgspec.field(default_factory=dict)
    quota: QuotaSection | msgspec.UnsetType = msgspec.UNSET
    durability: Literal["memory", "disk"] | msgspec.UnsetType = msgspec.UNSET
    fold: bool | msgspec.UnsetType = msgspec.UNSET
    owner: Text | msgspec.UnsetType = msgspec.UNSET
    trainable: TrainablePatterns | msgspec.UnsetType = msgspec.UNSET
    evaluates: bool | msgspec.UnsetType = msgspec.UNSET
    room_bytes: Count | msgspec.UnsetType = msgspec.UNSET
    listed: Told = msgspec.UNSET


class LoadJob(OpenJob, frozen=True):
    """Make a job ready, at home: its files are the checkpoint of its own `round`, with these `digests` if known."""

    digests: Digests = ()


class FetchJob(OpenJob, frozen=True):
    """Make a job ready, at home: the gateway at `source` has the model of its own `round`, and the rule's states."""

    source: Address = ""


class CloseJob(Message, frozen=True):
    """The job is over: free everything of it."""

    number: Count


class OpenBranch(Message, frozen=True, omit_defaults=True):
    """Take part in a round, with a tree for `updates` updates.

    Branch 0 makes the model, with the partials of `others` too and room for `spare` more.  The root partial of another
    goes to the gateway at `parent` (HOST:PORT; empty: the top is on the same node).  `adopt`: count what an earlier
    life of the node has sealed for this epoch, but for objects that have an update of a client in `without`.  `secret`
    is said with the partial (`coordinator/offer_secrets.py`); only nodes that know of it are told one.
    """

    number: Count
    epoch: Count
    branch: Count
    updates: Updates
    others: Annotated[tuple[Count, ...], msgspec.Meta(max_length=BRANCHES_MAX)] = ()
    spare: Branches = 0
    parent: Address = ""
    adopt: bool = False
    secret: Secret = ""
    without: Annotated[tuple[Name, ...], msgspec.Meta(max_length=CLIENTS_PER_ROUND_MAX * 10)] = ()


class Grant(Message, frozen=True, tag="GrantUpdate"):
    """The client's update may come to this node's gateway, over its connection `conn`.

    `direct`: the client writes it to the arena itself.
    """

    number: Count
    epoch: Count
    branch: Count
    conn: Count
    client: Name
    weight: Weight
    metrics: Metrics
    direct: bool = False


class CloseBranch(Message, frozen=True):
    """No more updates count but those that are sealed by now; of each of those an UpdateSealed was reported before."""

    number: Count
    epoch: Count
    branch: Count


class ForgetBranch(Message, frozen=True):
    """The top: `branch` is lost unless its partial is there.  The answer is BranchForgotten or PartialArrived."""

    number: Count
    epoch: Count
    branch: Count


class AwaitBranch(Message, frozen=True):
    """The top: the partial of `branch` will come too, in a spare place or in that of one that was forgotten."""

    number: Count
    epoch: Count
    branch: Count


class ExpectPartials(Message, frozen=True):
    """The top's branch is complete with `partials` partials of other branches: all are closed."""

    number: Count
    epoch: Count
    partials: Branches


class MovePartial(Message, frozen=True):
    """The top has begun anew: the root partial of `branch` goes to the gateway at `parent` (HOST:PORT), maybe again."""

    number: Count
    epoch: Count
    branch: Count
    parent: Address


class ModelAt(Message, frozen=True):
    """The job's current model is that of `round`; the gateway at `source` (HOST:PORT) has it."""

    number: Count
    round: Count
    source: Address


class DropBranch(Message, frozen=True):
    """The round ends without a model, or goes on without this branch (-1: each that the node has): free it."""

    number: Count
    epoch: Count
    branch: Annotated[int, msgspec.Meta(ge=-1, le=COUNT_MAX)] = -1


class SaveModel(Message, frozen=True):
    """Write the current model (and states) to files, durably; `keep`: it is served until ReleaseModel."""

    number: Count
    epoch: Count
    path: Path
    state_path: Path = ""
    keep: bool = False


class ReleaseModel(Message, frozen=True):
    """Serve the model of a SaveModel no longer: all copies of it are there."""

    number: Count
    epoch: Count


class CopyModel(Message, frozen=True):
    """Get the model of this epoch, and the rule's states, from the gateway at `source`, and write a copy durably.

    The files are as node `node` has written them, below this node's own folder of jobs.  The answer is ModelCopied or
    CopyFailed.  It is told to nodes that know of it.
    """

    number: Count
    epoch: Count
    node: Bits64
    source: Address
    path: Path
    state_path: Path = ""


class ServeCopy(Message, frozen=True):
    """Read this node's copy of the model of a round, and of the rule's states, and serve them.

    The answer is CopyServed or CopyFailed.
    """

    number: Count
    epoch: Count
    path: Path
    state_path: Path = ""
    digests: Digests = ()


class KeepCopies(Message, frozen=True):
    """Remove this node's copies of the job's models that do not stay.  It is told to nodes that know of it."""

    number: Count
    kept: Kept


class CommitBranch(Message, frozen=True):
    """The round is committed: free what was kept of it for a restart."""

    number: Count
    epoch: Count


class TakeModel(Message, frozen=True):
    """The session's host may bring the model behind `round`, or the rule's `state`, over its connection `conn`.

    `direct`: it writes itself.
    """

    number: Count
    conn: Count
    round: Count
    direct: bool = False
    state: Word = ""


class DrainNode(Message, frozen=True):
    """Let no client take part here, and send those that do to other nodes; or (`undo`) let them again.

    What the node has is finished, also with updates that clients bring from other nodes.  It is told to nodes that know
    of it.
    """

    undo: bool = False


Order = (
    OpenJob
    | LoadJob
    | CloseJob
    | OpenBranch
    | Grant
    | CloseBranch
    | ForgetBranch
    | AwaitBranch
    | ExpectPartials
    | MovePartial
    | ModelAt
    | DropBranch
    | SaveModel
    | ReleaseModel
    | CopyModel
    | ServeCopy
    | FetchJob
    | KeepCopies
    | CommitBranch
    | TakeModel
    | EvaluateModel
    | CallFunction
    | DrainNode
    | TellClient
)


# ---- reports -----------------------------------------------------------------------------------------------------


class JobOpened(Message, frozen=True):
    """The job's model is in the arena."""

    number: Count


class JobFailed(Message, frozen=True):
    """The job cannot go on at this node: a file cannot be read or written, the user's rule raised."""

    number: Count
    text: Text


class FoldAdopted(Message, frozen=True):
    """What an earlier life has left of a session: the result of `epoch` (0: none), and who is in it if that is known.

    `round` is the last that has a result.
    """

    number: Count
    round: Count
    epoch: Count
    members: Contributions


class BranchAdopted(Message, frozen=True):
    """The answer to OpenBranch(adopt=True): the members that are counted already; `more`: see `pages.py`."""

    number: Count
    epoch: Count
    branch: Count
    members: Contributions
    more: bool = False


class UpdateSealed(Message, frozen=True, forbid_unknown_fields=False):
    """A granted update is sealed and in the branch, and has this digest (`contribution.Contribution`; 0: not known).

    Of what an earlier life of the node has sealed it is said again, for the digest's sake.  Agents of earlier versions
    send a field more, which meant nothing.
    """

    number: Count
    epoch: Count
    branch: Count
    client: Name
    received_bytes: ArenaBytes
    digest: Bits64 = 0


class UpdateAborted(Message, frozen=True):
    """A granted update will not come (any more)."""

    number: Count
    epoch: Count
    branch: Count
    client: Name


class BranchClosed(Message, frozen=True):
    """The answer to CloseBranch: `updates` are in the branch, each was reported before."""

    number: Count
    epoch: Count
    branch: Count
    updates: Updates


class BranchSealed(Message, frozen=True):
    """The branch's one partial is complete and goes to the top; `cost` is the branch's part of the receipt."""

    number: Count
    epoch: Count
    branch: Count
    cost: dict[str, Any]


class PartialArrived(Message, frozen=True):
    """The top has the partial of a branch, which holds exactly these members; `moved_bytes` came from another node.

    `digests` are those of the members' updates.  `more`: pages follow (`pages.py`).
    """

    number: Count
    epoch: Count
    branch: Count
    members: Contributions
    moved_bytes: Count
    more: bool = False
    digests: Annotated[tuple[Bits64, ...], msgspec.Meta(max_length=MEMBERS_PER_FRAME_MAX)] = ()


class BranchForgotten(Message, frozen=True):
    """The answer to ForgetBranch: the branch's partial is not in the top, and never will be."""

    number: Count
    epoch: Count
    branch: Count


class BranchFailed(Message, frozen=True):
    """The branch cannot be finished; `retry`: another attempt of the round may help.

    `suspects` are those whose updates may be why (none: any); None when it is not for an update.
    """

    number: Count
    epoch: Count
    text: Text
    retry: bool
    suspects: Suspects | None = None


class ModelSealed(Message, frozen=True):
    """The top has made the round's model; `cost` is the branch's part of the receipt."""

    number: Count
    epoch: Count
    cost: dict[str, Any]


class ModelSaved(Message, frozen=True):
    """The files of a SaveModel are durable, and have these digests."""

    number: Count
    epoch: Count
    digests: Digests = ()


class ModelCopied(Message, frozen=True):
    """The files of a CopyModel are durable, and have these digests."""

    number: Count
    epoch: Count
    digests: Digests = ()


class CopyServed(Message, frozen=True):
    """The model of a ServeCopy, and the rule's states, can be fetched."""

    number: Count
    epoch: Count


class CopyFailed(Message, frozen=True):
    """A copy could not be made, or not be read; nothing is left of the try."""

    number: Count
    epoch: Count
    text: Text


class FilePaused(Message, frozen=True):
    """A file of the job cannot be read or written now; the agent tries again by itself."""

    number: Count
    text: Text


Report = (
    JobOpened
    | FoldAdopted
    | JobFailed
    | BranchAdopted
    | UpdateSealed
    | UpdateAborted
    | BranchClosed
    | BranchSealed
    | PartialArrived
    | BranchForgotten
    | BranchFailed
    | ModelSealed
    | ModelSaved
    | ModelCopied
    | CopyServed
    | CopyFailed
    | FilePaused
    | ModelEvaluated
    | FunctionReturned
)
