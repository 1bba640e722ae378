"""`lifl token`: what lets somebody into the cluster, once and soon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import click

from lifl.core.config.values import parse_duration
from lifl.core.identity import ROLES, Role
from lifl.core.limits import TOKEN_TTL_S_MAX, TOKEN_USES_MAX
from lifl.core.protocol.cli import CreateBearer, CreateToken, ListTokens, RevokeToken
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did


@click.group()
def token() -> None:
    """Let somebody join: make, list and revoke tokens."""


@token.command()
@click.option("--role", type=click.Choice(ROLES), required=True, help="What who joins will be.")
@click.option(
    "--name",
    "pattern",
    default="*",
    show_default=True,
    metavar="NAME",
    help="Its name; * is any text, left to who joins.",
)
@click.option("--job", "jobs", multiple=True, metavar="NAME", help="A client's: it may take part in this job alone.")
@click.option(
    "--uses",
    type=click.IntRange(1, TOKEN_USES_MAX),
    default=1,
    show_default=True,
    metavar="N",
    help="So many may join.",
)
@click.option("--bearer", is_flag=True, help="A client's: it takes part by the token itself, without a certificate.")
@click.option(
    "--ttl", default="15m", show_default=True, metavar="TIME", help="It is valid for so long: 90s, 15m, 2h, 1d."
)
@json_option
@state_option
def create(
    role: str, pattern: str, jobs: tuple[str, ...], uses: int, bearer: bool, ttl: str, as_json: bool, state_dir: Path
) -> None:
    """Print a token: one line, to be brought to who joins as a file (`--token-file`).

    Whoever has the line may join, so it is as secret as a password for as long as it is valid.  With --bearer nobody
    joins by it: a client of the name --name takes part in the job --job with it (Client(token_file=...)).
    """
    ttl_s = parse_duration(ttl, "--ttl")
    if not 0 < ttl_s <= TOKEN_TTL_S_MAX:
        raise click.BadParameter(f"a token is valid for at most {TOKEN_TTL_S_MAX / 86_400:g}d", param_hint="--ttl")
    wanted: CreateToken | CreateBearer = CreateToken(cast(Role, role), pattern, jobs, uses, ttl_s)
    if bearer:
        if role != "client" or "*" in pattern or len(jobs) != 1 or uses != 1:
            text = "a bearer token is for one client in one job: --role client --name NAME --job JOB, and no --uses"
            raise click.BadParameter(text, param_hint="--bearer")
        wanted = CreateBearer("client", pattern, jobs[0], ttl_s)
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(wanted)
    click.echo(json.dumps(result) if as_json else result["token"])


@token.command("list")
@json_option
@state_option
def list_(as_json: bool, state_dir: Path) -> None:
    """List the tokens, without their secrets."""
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(ListTokens())
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    if not result["tokens"]:
        click.echo("no tokens: make one with `lifl token create --role ROLE`")
        return
    from lifl_cli.render.credentials import tokens_table
    from lifl_cli.render.tables import show

    show(tokens_table(result["tokens"]))


@token.command()
@click.argument("number")
@json_option
@state_option
def revoke(number: str, as_json: bool, state_dir: Path) -> None:
    """Let nobody in by a token any more; who came by it stays (see `lifl cert revoke`).

    Who takes part by a bearer token is out at once.
    """
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(RevokeToken(number))
    did(f"token {number} is revoked", json.dumps(result) if as_json else None)
