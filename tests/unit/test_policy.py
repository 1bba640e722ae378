"""Who may do what: each cell of role × action, written out here once more, and each scope."""

from __future__ import annotations

from typing import get_args

import pytest

from lifl.core.errors import Refused
from lifl.core.identity import ROLES, Identity, Role
from lifl.core.protocol import cli as om
from lifl.core.trust.policy import Action, check

WHO = {
    Action.TAKE_PART: {"client"},
    Action.BE_NODE: {"node"},
    Action.CARRY: {"node"},
    Action.RENEW: {"node", "client", "operator", "reader"},
    Action.SEE_JOBS: {"operator", "reader"},
    Action.SEE_NODES: {"operator", "reader"},
    Action.PLAN_JOB: {"operator"},
    Action.READ_MODEL: {"operator"},
    Action.SUBMIT_JOB: {"operator"},
    Action.CANCEL_JOB: {"operator"},
    Action.CHANGE_JOB: {"operator"},
    Action.HOST_FOLDS: {"operator"},
    Action.STOP_NODE: {"operator"},
    Action.RECORD: {"operator"},
    Action.MANAGE_TOKENS: {"operator"},
    Action.SEE_CERTIFICATES: {"operator"},
    Action.MANAGE_CERTIFICATES: {"operator"},
    Action.OPEN_PAGE: {"operator", "reader"},
    Action.SEE_LOG: {"operator"},
}
OWN = {Action.RENEW, Action.BE_NODE, Action.TAKE_PART}
"""What is done in one's own name alone."""
LOOKING = {om.ListJobs, om.JobStatus, om.JobClients, om.Snapshot, om.ListNodes, om.Follow, om.OpenPage}
LOOKING |= {om.PlansOfRound, om.UpdatesOfRound}
"""What a reader may ask."""


def test_the_table_here_has_all_actions() -> None:
    assert set(WHO) == set(Action)


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_stands_here_and_nothing_else(role: Role, action: Action) -> None:
    own = Identity(role, "own")
    if role in WHO[action]:
        check(own, action, name="own", job="job")
        return
    with pytest.raises(Refused) as refused:
        check(own, action, name="own", job="job")
    assert refused.value.code == "not-allowed"
    assert str(own) in refused.value.text and action.value in refused.value.text
    assert all(each in refused.value.text for each in WHO[action])


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("role", ROLES)
def test_in_anothers_name_only_what_is_about_all_may_be_done(role: Role, action: Action) -> None:
    if role not in WHO[action]:
        return
    if action not in OWN:
        check(Identity(role, "own"), action, name="other")
        return
    with pytest.raises(Refused) as refused:
        check(Identity(role, "own"), action, name="other")
    assert (refused.value.code, refused.value.field) == ("not-own-name", "name")


def test_a_client_takes_part_in_the_jobs_of_its_certificate_alone_or_in_any_when_it_names_none() -> None:
    client = Identity("client", "own")
    check(client, Action.TAKE_PART, "own", "digits", ("digits", "faces"))
    check(client, Action.TAKE_PART, "own", "digits")
    with pytest.raises(Refused) as refused:
        check(client, Action.TAKE_PART, "own", "voices", ("digits", "faces"))
    assert (refused.value.code, refused.value.field) == ("not-own-job", "job")
    assert "digits, faces" in refused.value.text


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("role", ROLES)
def test_by_a_bearer_token_a_client_takes_part_and_nobody_does_anything_else(role: Role, action: Action) -> None:
    own, scope = Identity(role, "own"), ("own", "job", ("job",))
    if (role, action) == ("client", Action.TAKE_PART):
        check(own, action, *scope, bearer=True)
        for name, job, code in (("other", "job", "not-own-name"), ("own", "other", "not-own-job")):
            with pytest.raises(Refused, match="its bearer token says") as refused:
                check(own, action, name, job, ("job",), bearer=True)
            assert refused.value.code == code
        return
    with pytest.raises(Refused) as refused:
        check(own, action, *scope, bearer=True)
    assert refused.value.code == "not-allowed" and action.value in refused.value.text


@pytest.mark.parametrize("kind", get_args(om.FromCli), ids=lambda kind: kind.__name__)
def test_each_request_of_a_command_line_is_an_action_and_a_reader_only_looks(kind: type) -> None:
    action = om.ACTION_OF[kind]
    assert ("reader" in WHO[action]) == (kind in LOOKING)
    assert "operator" in WHO[action]
    assert not WHO[action] & {"node", "client"}
