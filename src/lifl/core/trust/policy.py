"""Who may do what: role × action × scope, and whatever is not in the table may not be done.

The owner of a node, who comes by its AF_UNIX socket, is an operator.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from lifl.core.errors import Refused
from lifl.core.identity import ROLES, Identity, Role


class Action(Enum):
    """What somebody may want to do; the value is how it is told."""

    TAKE_PART = "take part in a job"
    BE_NODE = "be a node of the cluster"
    CARRY = "carry partials and models between nodes"
    RENEW = "renew a certificate"
    SEE_JOBS = "see jobs and plans"
    SEE_NODES = "see the nodes"
    PLAN_JOB = "plan a job that is not submitted"
    READ_MODEL = "copy a model"
    SUBMIT_JOB = "submit a job"
    CANCEL_JOB = "cancel a job"
    CHANGE_JOB = "pause, resume, change or remove a job"
    HOST_FOLDS = "host folds, and bring their updates"
    STOP_NODE = "stop a node"
    RECORD = "write a recording"
    MANAGE_TOKENS = "make, see and revoke tokens"
    SEE_CERTIFICATES = "see certificates"
    MANAGE_CERTIFICATES = "revoke certificates, and rotate the authority"
    OPEN_PAGE = "open the page in a browser"
    SEE_LOG = "see the log"


class Scope(Enum):
    """Of what an action may be done."""

    ALL = "all"
    OWN = "its own name alone"
    OWN_IN_ITS_JOBS = "its own name alone, and the jobs of its certificate if that names any"


_OPERATOR = {
    Action.RENEW: Scope.OWN,
    Action.SEE_JOBS: Scope.ALL,
    Action.SEE_NODES: Scope.ALL,
    Action.PLAN_JOB: Scope.ALL,
    Action.READ_MODEL: Scope.ALL,
    Action.SUBMIT_JOB: Scope.ALL,
    Action.CANCEL_JOB: Scope.ALL,
    Action.CHANGE_JOB: Scope.ALL,
    Action.HOST_FOLDS: Scope.ALL,
    Action.STOP_NODE: Scope.ALL,
    Action.RECORD: Scope.ALL,
    Action.MANAGE_TOKENS: Scope.ALL,
    Action.SEE_CERTIFICATES: Scope.ALL,
    Action.MANAGE_CERTIFICATES: Scope.ALL,
    Action.OPEN_PAGE: Scope.ALL,
    Action.SEE_LOG: Scope.ALL,
}
POLICY: dict[Role, dict[Action, Scope]] = {
    "node": {Action.RENEW: Scope.OWN, Action.BE_NODE: Scope.OWN, Action.CARRY: Scope.ALL},
    "client": {Action.RENEW: Scope.OWN, Action.TAKE_PART: Scope.OWN_IN_ITS_JOBS},
    "operator": _OPERATOR,
    "reader": {
        Action.RENEW: Scope.OWN,
        Action.SEE_JOBS: Scope.ALL,
        Action.SEE_NODES: Scope.ALL,
        Action.OPEN_PAGE: Scope.ALL,
    },
}
"""What each role may do, and of what."""


BY_BEARER = frozenset({Action.TAKE_PART})
"""What may be done by a bearer token at all; all else takes a certificate."""


def check(
    identity: Identity,
    action: Action,
    name: str = "",
    job: str = "",
    jobs: Collection[str] = (),
    bearer: bool = False,
) -> None:
    """Raise `Refused` unless somebody may do an action: in the name `name`, about `job`.

    `jobs` are those that its certificate names, or its token: a `bearer` has shown no certificate.  An empty `name` or
    `job`: the action is about none.
    """
    shown = "bearer token" if bearer else "certificate"
    if bearer and action not in BY_BEARER:
        raise Refused("not-allowed", "", f"{identity} may not {action.value} by a {shown}: that takes a certificate")
    scope = POLICY[identity.role].get(action)
    if scope is None:
        able = " or ".join(role for role in ROLES if may(role, action))
        raise Refused("not-allowed", "", f"{identity} may not {action.value}: that is for: {able}")
    if scope is not Scope.ALL and name and name != identity.name:
        text = f"{identity} may do that in its own name alone, not as {name!r}: its {shown} says who it is"
        raise Refused("not-own-name", "name", text)
    if scope is Scope.OWN_IN_ITS_JOBS and jobs and job and job not in jobs:
        text = f"{identity} may take part in {', '.join(sorted(jobs))} alone, not in {job!r}: its {shown} says so"
        raise Refused("not-own-job", "job", text)


def may(role: Role, action: Action) -> bool:
    """Return whether a role may do an action at all."""
    return action in POLICY[role]
