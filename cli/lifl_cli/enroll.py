"""`lifl enroll`: a certificate for this account, by a token."""

from __future__ import annotations

import json

import click

from lifl_cli.options import json_option
from lifl_cli.output import did
from lifl_cli.render.figures import time_text
from lifl_cli.token_file import token_of


@click.command()
@click.argument("address", metavar="HOST:PORT")
@click.option("--token-file", required=True, metavar="FILE", help="The file with the token; - is standard input.")
@click.option("--name", default="", metavar="NAME", help="The name to be called by, where the token leaves it open.")
@click.option("--identity", "folder", metavar="DIR", help="Where it goes.  [default: $LIFL_IDENTITY, or as below]")
@json_option
def enroll(address: str, token_file: str, name: str, folder: str | None, as_json: bool) -> None:
    """Get a certificate by a token, as a client, an operator or a reader.

    HOST:PORT is the control address of any node of the cluster.  The key is made here and stays here; it goes, with the
    certificate, to ~/.config/lifl/identities/HOST_PORT/, where clients and commands of this account find it.
    """
    from lifl.core.config.values import split_address
    from lifl.core.errors import ResourceFault
    from lifl.core.trust.enrolment import check_wanted
    from lifl.tls.contexts import Contexts, is_usable
    from lifl.tls.enrolment import enrol
    from lifl.tls.folder import check_room, load, user_folder

    split_address(address, "HOST:PORT")
    check_wanted(name)
    target = user_folder(address, folder)
    there = load(target)  # or say what is wrong with it, before the token is used
    if there is not None and is_usable(there):
        own = Contexts(there).own
        text = f"{target} has the identity of {own.identity} already; another one goes elsewhere (--identity DIR), or"
        raise ResourceFault(f"{text} remove that folder first")
    token = token_of(token_file)
    check_room(target)
    obtained = enrol(address, token, name)
    obtained.save(target)
    files = load(target)
    assert files is not None
    own = Contexts(files).own
    found = {
        "role": own.identity.role,
        "name": own.identity.name,
        "jobs": own.jobs,
        "cluster": own.cluster,
        "expires_unix_s": own.expires_unix_s,
        "folder": str(target),
    }
    limited = f", for {', '.join(own.jobs)} alone" if own.jobs else ""
    text = f"{own.identity} of cluster {own.cluster}{limited}, until {time_text(own.expires_unix_s)}: {target}"
    did(text, json.dumps(found) if as_json else None)
