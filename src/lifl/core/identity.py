"""Who somebody is, as a certificate says it: a role and a name, in a cluster.

It stands in the certificate as one URI among the subject's alternative names, ``lifl://CLUSTER/ROLE/NAME``, with the
name percent-encoded: letters, digits and ``-._~`` stand for themselves.  Each identity has one such text, so that two
that differ are two identities.  A certificate with none of these URIs, or with two, is nobody's here.  A client's may
be limited to jobs: it has ``lifl-job:NAME`` besides, for each.  ``lifl-issued:SECONDS`` says when it was issued.
URIs of other schemes are not minded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal, get_args
from urllib.parse import quote, unquote

import msgspec

from lifl.core.errors import LocalFault, RemoteFault
from lifl.core.fields import NAME_RULE, Name
from lifl.core.limits import IDENTITY_URI_CHARS_MAX, NAME_CHARS_MAX

Role = Literal["node", "client", "operator", "reader"]
"""What somebody may do: a node what nodes say, a client its own part in a job, an operator all, a reader look."""
ROLES: tuple[Role, ...] = get_args(Role)
ClusterName = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX, pattern=r"\A[a-z0-9][a-z0-9.-]*\Z")]
CLUSTER_NAME_RULE = f"small letters, digits and .- , a letter or digit first, at most {NAME_CHARS_MAX}"

_PREFIX = "lifl://"
_JOB_PREFIX = "lifl-job:"
_ISSUED_PREFIX = "lifl-issued:"
AUTHORITY_URI = "lifl-authority:"
"""Stands in the certificate of the node that has the authority: tokens' secrets are told to it alone."""


class Identity(msgspec.Struct, frozen=True):
    """Somebody of a cluster; nodes, too, have a name beside their number."""

    role: Role
    name: Name

    def __str__(self) -> str:
        return f"{self.role} {self.name}"


class _Parts(msgspec.Struct):
    cluster: ClusterName
    role: Role
    name: Name


def identity_uri(cluster: str, identity: Identity) -> str:
    """Return the URI that stands for an identity of `cluster`.  Raise `LocalFault` when a part of it cannot be one."""
    try:
        _parts(cluster, identity.role, identity.name)
    except msgspec.ValidationError as error:
        raise LocalFault(
            f"{identity.role} {identity.name!r} of cluster {cluster!r}: {error}; a role is one of {', '.join(ROLES)}, "
            f"a name {NAME_RULE}, a cluster's name {CLUSTER_NAME_RULE}"
        ) from None
    return f"{_PREFIX}{cluster}/{identity.role}/{quote(identity.name, safe='')}"


def parse_uri(uri: str) -> tuple[str, Identity]:
    """Return cluster and identity of a URI.  Raise `RemoteFault` when it is not the one text of an identity."""
    shown = uri[:IDENTITY_URI_CHARS_MAX]
    parts = uri.removeprefix(_PREFIX).split("/")
    if not uri.startswith(_PREFIX) or len(uri) > IDENTITY_URI_CHARS_MAX or len(parts) != 3:
        raise RemoteFault(f"a certificate is for {shown!a}, which is not {_PREFIX}CLUSTER/ROLE/NAME")
    cluster, role, name = parts
    try:
        found = _parts(cluster, role, unquote(name, errors="strict"))
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise RemoteFault(f"a certificate is for {shown!a}, which is no identity: {error}") from None
    identity = Identity(found.role, found.name)
    if identity_uri(found.cluster, identity) != uri:
        raise RemoteFault(f"a certificate is for {shown!a}, which is not how that identity is written")
    return found.cluster, identity


def identity_of(uris: Iterable[str]) -> tuple[str, Identity]:
    """Return cluster and identity of a certificate with these URIs.  Raise `RemoteFault` unless it has exactly one."""
    ours = [uri for uri in uris if uri.lower().startswith("lifl:")]
    if len(ours) != 1:
        text = "no identity of LIFL" if not ours else f"{len(ours)} identities of LIFL"
        raise RemoteFault(f"a certificate has {text} among its alternative names; it must have one: {_PREFIX}...")
    return parse_uri(ours[0])


def job_uri(job: str) -> str:
    """Return the URI that limits a client's certificate to a job; it may have several."""
    return f"{_JOB_PREFIX}{quote(job, safe='')}"


def jobs_of(uris: Iterable[str]) -> tuple[str, ...]:
    """Return the jobs that a certificate is limited to; none: it is not.  Raise `RemoteFault` when it names no job."""
    found = [uri[len(_JOB_PREFIX) :] for uri in uris if uri.lower().startswith(_JOB_PREFIX)]
    try:
        return msgspec.convert([unquote(job, errors="strict") for job in found], type=tuple[Name, ...])
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise RemoteFault(f"a certificate is limited to what is no job: {error}") from None


def moment(unix_s: float) -> float:
    """Return a time as certificates and revocations have it, to the microsecond, so that the two can be compared."""
    return round(unix_s, 6)


def issued_uri(unix_s: float) -> str:
    """Return the URI that says when a certificate was issued: it begins earlier, for clocks differ."""
    return f"{_ISSUED_PREFIX}{moment(unix_s):.6f}"


def issued_of(uris: Iterable[str]) -> float | None:
    """Return when a certificate was issued; None: it does not say.  Raise `RemoteFault` when it says no time."""
    found = [uri[len(_ISSUED_PREFIX) :] for uri in uris if uri.lower().startswith(_ISSUED_PREFIX)]
    if not found:
        return None
    if len(found) > 1 or not re.fullmatch(r"[0-9]{1,12}\.[0-9]{6}", found[0]):
        raise RemoteFault("a certificate says that it was issued when there is no time")
    return float(found[0])


def _parts(cluster: str, role: str, name: str) -> _Parts:
    return msgspec.convert({"cluster": cluster, "role": role, "name": name}, type=_Parts)
