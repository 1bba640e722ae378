"""`lifl cert`: the certificates of a cluster."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from lifl.core.errors import ResourceFault
from lifl.core.protocol.cli import ListCertificates, RenewCertificate, RevokeCertificate, RotateAuthority
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did
from lifl_cli.state import absolute


@click.group()
def cert() -> None:
    """List, revoke and renew certificates; rotate the authority."""


@cert.command("list")
@json_option
@state_option
def list_(as_json: bool, state_dir: Path) -> None:
    """List the certificates that have not expired."""
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(ListCertificates())
        while (more := result.pop("more")) is not None:
            page = daemon.ask(ListCertificates(more))
            result = {"certificates": result["certificates"] + page["certificates"], "more": page["more"]}
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    from lifl_cli.render.credentials import certificates_table
    from lifl_cli.render.tables import show

    show(certificates_table(result["certificates"]))


@cert.command()
@click.argument("which")
@json_option
@state_option
def revoke(which: str, as_json: bool, state_dir: Path) -> None:
    """Revoke a certificate by its serial, or all that are issued to NAME or ROLE/NAME.

    Of a serial the beginning will do that `lifl cert list` shows.  All nodes know it within seconds, and end the
    connections of whose they are.
    """
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(RevokeCertificate(which))
    did("\n".join(f"revoked: {each}" for each in result["revoked"]), json.dumps(result) if as_json else None)


@cert.command()
@click.argument("whose", metavar="[HOST:PORT|DIR]", required=False)
@json_option
@state_option
def renew(whose: str | None, as_json: bool, state_dir: Path) -> None:
    """Renew a certificate now; all do so by themselves when half of their time is over.

    It is the node's; or this account's own, named by the address where it has enrolled, or by its identity folder.
    """
    if whose is not None:
        _renew_own(whose, as_json)
        return
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(RenewCertificate())
    did("the node renews its certificate; `lifl doctor` shows it", json.dumps(result) if as_json else None)


def _renew_own(whose: str, as_json: bool) -> None:
    from lifl.tls.contexts import Contexts
    from lifl.tls.folder import load, user_folder
    from lifl.tls.renewing import renew_now
    from lifl_cli.render.figures import time_text

    folder = absolute(whose) if os.sep in whose or ":" not in whose else user_folder(whose)
    if (files := load(folder)) is None:
        raise ResourceFault(f"there is no identity in {folder}; get one with `lifl enroll HOST:PORT --token-file F`")
    contexts = Contexts(files)
    if not renew_now(contexts):
        raise ResourceFault(f"another process renews the identity in {folder} just now")
    own = contexts.own
    text = f"{own.identity}: the certificate is valid until {time_text(own.expires_unix_s)}"
    found = {"serial": own.serial, "expires_unix_s": own.expires_unix_s}
    did(text, json.dumps(found) if as_json else None)


@cert.command()
@json_option
@state_option
def rotate(as_json: bool, state_dir: Path) -> None:
    """Put a new authority in the place of the old one, which stays trusted until all that it issued has expired."""
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(RotateAuthority())
    did(f"the authority's digest is now {result['digest']}", json.dumps(result) if as_json else None)
