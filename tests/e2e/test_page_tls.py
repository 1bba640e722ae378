"""The page of a node that other machines reach: by TLS, as whom a certificate says, until that is revoked."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

from fleet import until
from http_clients import enrolled
from nodes import Node, run_lifl
from page_clients import PageClient, heard

EVERYWHERE = ("--listen", "0.0.0.0:0", "--control", "0.0.0.0:0", "--web", "0.0.0.0:0", "--redirector", "unix")


def link_by(node: Node, identity: Path) -> str:
    """A link, asked for from elsewhere by an identity."""
    done = asked(node, identity)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["link"])


def asked(node: Node, identity: Path, *more: str) -> subprocess.CompletedProcess[str]:
    control = node.info["control"].replace("0.0.0.0", "127.0.0.1")
    return run_lifl("--node", control, "--identity", str(identity), "web", "--json", *more)


def lets_somebody_in_and_out(node: Node, operator: PageClient, folder: Path) -> None:
    """What the page's view of tokens and certificates does."""
    made = operator.ask("CreateToken", role="client", pattern="hospital-*", jobs=["mine"], uses=2, ttl_s=600).json
    (folder / "page.token").touch(0o600)
    (folder / "page.token").write_text(made["token"])
    control = node.info["control"].replace("0.0.0.0", "127.0.0.1")
    mia = ("--name", "hospital-1", "--identity", str(folder / "mia"))
    done = run_lifl("enroll", control, "--token-file", str(folder / "page.token"), *mia)
    assert done.returncode == 0, done.stderr
    bearer = operator.ask("CreateBearer", role="client", name="tom", job="mine").json
    tokens = {each["number"]: each for each in operator.ask("ListTokens").json["tokens"]}
    assert (tokens[made["number"]]["used"], tokens[bearer["number"]]["bearer"]) == (1, True)
    assert not any(made["token"].rpartition(".")[2] in str(each) for each in tokens.values()), "no secret is told"
    for number in (made["number"], bearer["number"]):
        assert operator.ask("RevokeToken", number=number).json == {"number": number}
    assert operator.ask("RevokeToken", number="none").code == "unknown-token"
    assert operator.ask("ListJobs").status == 200, "a token that is not there ends no visit"

    def mias() -> list[tuple[str, str]]:
        lines = operator.ask("ListCertificates").json["certificates"]
        return [(each["serial"], each["state"]) for each in lines if each["name"] == "hospital-1"]

    ((serial, state),) = mias()
    assert state == "valid"
    assert operator.ask("RevokeCertificate", which=serial).json["revoked"] == [serial]
    assert mias() == [(serial, "revoked")]


def puts_certificates_in_the_place_of_others(operator: PageClient) -> None:
    """What the page's buttons of the node's own certificate and of the authority do."""

    def nodes_own() -> list[str]:
        lines = operator.ask("ListCertificates").json["certificates"]
        return [each["serial"] for each in lines if each["role"] == "node"]

    (first,) = nodes_own()
    assert operator.ask("RenewCertificate").json == {}
    until("a new certificate of the node", lambda: len(nodes_own()) == 2)
    assert nodes_own()[0] == first
    made = operator.ask("RotateAuthority").json["digest"]
    assert len(nodes_own()) == 3, "the new authority has certified its node"
    assert made in operator.ask("CreateToken", role="reader").json["token"]


def test_an_operator_elsewhere_is_who_its_certificate_says(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node = start_node(*EVERYWHERE)
    anna, eve = (enrolled(node, tmp_path, role, name) for role, name in (("operator", "anna"), ("reader", "eve")))
    tls = ssl.create_default_context(cafile=anna / "ca.pem")
    link = link_by(node, anna)
    assert link.startswith(f"https://127.0.0.1:{node.info['http'].rpartition(':')[2]}/#link=")
    operator = PageClient(node, link=link, tls=tls)
    front = operator.say("GET", "/", Cookie=None, LIFL_Page=None)
    assert front.status == 200 and b"LIFL" in front.body, "the files are anybody's, and say nothing"
    said = operator.open()
    assert (said.json["role"], said.json["name"]) == ("operator", "anna")
    name, *attributes = said.headers["Set-Cookie"].split("; ")
    assert name.startswith("__Host-lifl-") and {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    assert PageClient(node, link=link, tls=tls).open().code == "link-over"
    assert operator.ask("ListJobs").status == 200 and operator.ask("ReadAudit").status == 200
    plain = operator.origin.replace("https", "http")
    assert operator.say("POST", "/page/v1/ask", {"type": "ListJobs"}, Origin=plain).code == "wrong-origin"
    assert operator.ask("ListJobs").status == 200

    reader = PageClient(node, link=link_by(node, eve), tls=tls)
    assert reader.open().json["role"] == "reader"
    assert reader.ask("ListJobs").status == 200 and reader.ask("ReadAudit").code == "not-allowed"
    lets_somebody_in_and_out(node, operator, tmp_path)
    puts_certificates_in_the_place_of_others(operator)
    done = asked(node, eve, "--role", "operator")
    assert done.returncode == 1 and "not-allowed" in done.stderr

    stranger = PageClient(node, link="#link=x", tls=ssl.create_default_context())
    try:
        stranger.say("GET", "/")
    except ssl.SSLCertVerificationError:
        pass
    else:
        raise AssertionError("who was not told the authority does not believe the node")
    assert PageClient(node, link="#link=x", tls=None).say("GET", "/").status == 400, "nothing goes in plain"

    stream = operator.stream()
    heard(stream, "node")
    waiting = link_by(node, anna)
    node.lifl("cert", "revoke", "operator/anna")
    heard(stream, "over")
    stream.close()
    assert operator.ask("ListJobs").code == "visit-over"
    assert PageClient(node, link=waiting, tls=tls).open().code == "link-over"
    assert reader.ask("ListJobs").status == 200, "others' visits go on"
    events = {("page.opened", "operator anna"), ("page.opened", "reader eve"), ("page.linked", "operator anna")}
    events |= {(name, "page operator anna") for name in ("token.made", "token.revoked")}
    events |= {(f"cert.{name}", "page operator anna") for name in ("revoked", "told", "rotated")}
    until("the notes", lambda: events <= {(note["event"], note["who"]) for note in node.json("audit")})
