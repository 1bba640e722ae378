"""`lifl web`: a link to the node's page, for a browser; good once, and soon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import click

from lifl.core.config.values import joined_address, split_address
from lifl.core.limits import WEB_LINK_S
from lifl.core.protocol.cli import OpenPage
from lifl.core.trust.page_visits import ROLES
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option

EVERYWHERE = ("0.0.0.0", "::")


@click.command()
@click.option("--role", type=click.Choice(ROLES), help="As whom who opens it looks.  [default: as you]")
@click.option("--open", "opens", is_flag=True, help="Open it in this machine's browser, too.")
@json_option
@state_option
def web(role: str | None, opens: bool, as_json: bool, state_dir: Path) -> None:
    """Print a link to the node's page, for a browser.

    It is good once, within two minutes: whoever opens it may do at the page what you may here (a reader: look), for
    twelve hours or until the node ends.  The node serves its page where it was started with --web, or with --http.
    """
    with daemon_at(state_dir) as daemon:
        made = daemon.ask(OpenPage(cast(Any, role or "")))
    link = link_of(made, click.get_current_context().find_root().params.get("node"))
    if opens:
        click.launch(link)
    if as_json:
        shown = {name: made[name] for name in ("role", "expires_unix_s")}
        click.echo(json.dumps({"link": link} | shown))
        return
    click.echo(link)
    click.echo(f"good once, within {WEB_LINK_S:g} s, as {made['role']}", err=True)


def link_of(made: dict[str, Any], node: str | None = None) -> str:
    """Return the link; a node that listens everywhere is reached at the host of its control address `node`.

    The secret stands behind a #: browsers do not send that, so it is in no log, and who only fetches the link does not
    use it up.
    """
    host, port = split_address(made["address"], "http")
    if host in EVERYWHERE:
        host = split_address(node, "--node")[0] if node else "127.0.0.1"
    scheme = "https" if made["tls"] else "http"
    return f"{scheme}://{joined_address(host, port)}/#link={made['link']}"
