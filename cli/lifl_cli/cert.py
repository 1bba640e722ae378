"""`lifl cert`: the certificates of a cluster."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl.core.protocol.cli import ListCertificates, RenewCertificate, RevokeCertificate, RotateAuthority
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option


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

    All nodes know it within seconds, and end the connections of whose they are.
    """
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(RevokeCertificate(which))
    if as_json:
        click.echo(json.dumps(result))
        return
    for each in result["revoked"]:
        click.echo(f"revoked: {each}")


@cert.command()
@json_option
@state_option
def renew(as_json: bool, state_dir: Path) -> None:
    """Renew the node's certificate now; it does so by itself when half of its time is over."""
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(RenewCertificate())
    if as_json:
        click.echo(json.dumps(result))
        return
    from lifl_cli.render.figures import time_text

    click.echo(f"the certificate is valid until {time_text(result['expires_unix_s'])}")


@cert.command()
@json_option
@state_option
def rotate(as_json: bool, state_dir: Path) -> None:
    """Put a new authority in the place of the old one, which stays trusted until all that it issued has expired."""
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(RotateAuthority())
    click.echo(json.dumps(result) if as_json else f"the authority's digest is now {result['digest']}")
