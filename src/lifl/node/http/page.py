"""The page in a browser: its files, and what they ask for.

The files (`page/`) are the same for everybody and say nothing.  All else takes a visit (`core/trust/page_visits.py`):
its cookie, and the page's key in a header, which a page of another origin cannot send.  What changes something comes
with the page's own Origin besides.  What is asked goes to `lifld` as a request of the command line (`visits.py`).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from lifl.core.config.edits import EDITABLE
from lifl.core.fields import CLIENT_PATTERN_RULE, NAME_RULE
from lifl.core.limits import MODEL_PIECE_BYTES, TOKEN_TTL_S_MAX, TOKEN_USES_MAX, WEB_ASK_BYTES_MAX, WEB_VISIT_S
from lifl.core.protocol import cli as om
from lifl.node.http.page_jobs import PageJobs
from lifl.node.http.visits import ANSWER_S, NO_VISIT, Secrets, Visits
from lifl.node.http.watchers import Watchers
from lifl.node.http.wire import JSON, Exchange, Problem

FOLDER = Path(__file__).with_name("page")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
KEY = "lifl-page"
"""The header with the page's key."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_LOOKING = om.ListJobs | om.JobStatus | om.JobClients | om.PlansOfRound | om.UpdatesOfRound | om.ReadAudit | om.ReadLog
_TOKENS = om.ListTokens | om.CreateToken | om.CreateBearer | om.RevokeToken
_CERTIFICATES = om.ListCertificates | om.RevokeCertificate | om.RenewCertificate | om.RotateAuthority
_CHANGING = om.CancelJob | om.PauseJob | om.ResumeJob | om.EditJob | om.RemoveJob | om.DrainNode
ASKS = _LOOKING | _TOKENS | _CERTIFICATES | _CHANGING
"""What a page may ask at all, of what the command line asks; whether the visitor may, the policy says."""
LATER_S: dict[type, float] = {om.DrainNode: om.DRAIN_S, om.RemoveJob: 60.0, om.ReadAudit: 30.0}
"""What takes longer."""
_Ask = msgspec.json.Decoder(ASKS)


class File(NamedTuple):
    """A file of the page."""

    kind: str
    tag: str
    data: bytes


@cache
def files() -> dict[str, File]:
    """Return the files by their paths."""
    found = {}
    for path in sorted(each for each in FOLDER.iterdir() if each.suffix in KINDS):
        data = path.read_bytes()
        file = File(KINDS[path.suffix], f'"{hashlib.sha256(data).hexdigest()[:16]}"', data)
        found["/" if path.name == "index.html" else f"/page/{path.name}"] = file
    return found


def is_of_page(path: str) -> bool:
    """Return whether a path is the page's."""
    return path == "/" or path.startswith("/page/")


class _Link(msgspec.Struct, forbid_unknown_fields=True):
    link: str


class PageDoor:
    """What the page's paths answer; `is_tls`: browsers come by TLS."""

    def __init__(self, visits: Visits, is_tls: bool) -> None:
        self._visits = visits
        self.watchers = Watchers(visits)
        self._jobs = PageJobs(visits)
        self._is_tls = is_tls

    async def answer(self, exchange: Exchange, port: int, visiting: Callable[[str, str], None]) -> bool:
        """Answer a request at the door with this port; return whether it came with a visit.

        Of one that did `visiting` is told first whose and what it is, and may refuse it.  Raise `Refused`, `Problem`,
        `OSError`.
        """
        exchange.common = HEADERS | {"Cache-Control": "no-store"}
        self._check_host(exchange.headers)
        asked = exchange.method, exchange.path
        if (file := files().get(exchange.path)) is not None:
            await self._send_file(exchange, file)
            return False
        if exchange.method not in ("GET", "HEAD"):
            self._check_origin(exchange.headers)
        cookie = f"{'__Host-' if self._is_tls else ''}lifl-{port}"
        if asked == ("POST", "/page/v1/visit"):
            await self._open(exchange, cookie)
            return True
        secrets = self._secrets(exchange.headers, cookie)
        visiting(f"visit {secrets.digest.hex()}", "page")
        match asked:
            case ("GET", "/page/v1/stream"):
                await self.watchers.tell(exchange, secrets, _job(exchange.arguments()))
            case ("POST", "/page/v1/ask"):
                await self._ask(exchange, secrets)
            case ("POST", "/page/v1/submit"):
                await self._jobs.submit(exchange, secrets)
            case ("POST", "/page/v1/plan"):
                await self._jobs.plan(exchange, secrets)
            case ("GET", "/page/v1/trace"):
                await self._jobs.send_trace(exchange, secrets)
            case ("PUT", "/page/v1/model"):
                await self._jobs.take_piece(exchange, secrets)
            case ("GET", "/page/v1/model"):
                await self._jobs.send_model(exchange, secrets)
            case ("DELETE", "/page/v1/visit"):
                self._visits.end(secrets)
                await exchange.answer(204, headers={"Set-Cookie": self._cookie(cookie, "", 0)})
            case _:
                raise Problem(404, "unknown-path", "the page has no such path", "path")
        return True

    def _check_host(self, headers: Mapping[str, str]) -> None:
        """Raise `Problem` where a name that is not this machine's was made to lead to it."""
        if self._is_tls:
            return
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        try:
            is_ours = ipaddress.ip_address(host).is_loopback
        except ValueError:
            is_ours = host == "localhost"
        if not is_ours:
            text = f"the page of a node on loopback is at 127.0.0.1 or localhost, not at {host!r:.100}"
            raise Problem(403, "wrong-host", text, "Host")

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        own = f"{'https' if self._is_tls else 'http'}://{headers.get('host', '')}"
        if headers.get("origin", "") != own:
            text = f"this comes from {headers.get('origin', 'no page')!r:.100}, and is taken from {own} alone"
            raise Problem(403, "wrong-origin", text, "Origin")

    def _secrets(self, headers: Mapping[str, str], cookie: str) -> Secrets:
        pairs = [each.strip().partition("=") for each in headers.get("cookie", "").split(";")]
        shown = [value for name, _, value in pairs if name == cookie]
        secrets = Secrets(shown[0] if len(shown) == 1 else "", headers.get(KEY, ""))
        if not self._visits.is_valid(secrets):
            raise NO_VISIT
        return secrets

    def _cookie(self, name: str, value: str, age_s: float) -> str:
        secure = "; Secure" if self._is_tls else ""
        return f"{name}={value}; Path=/; Max-Age={age_s:.0f}; HttpOnly; SameSite=Strict{secure}"

    @staticmethod
    async def _send_file(exchange: Exchange, file: File) -> None:
        if exchange.method not in ("GET", "HEAD"):
            raise Problem(405, "unknown-method", f"not by {exchange.method:.20}", "method", {"Allow": "GET"})
        exchange.common = HEADERS | {"Cache-Control": "no-cache", "ETag": file.tag}
        if exchange.headers.get("if-none-match") == file.tag:
            await exchange.answer(304)
            return
        await exchange.answer(200, file.data, kind=file.kind)

    async def _open(self, exchange: Exchange, cookie: str) -> None:
        body = await exchange.read(WEB_ASK_BYTES_MAX)
        try:
            link = msgspec.json.decode(body, type=_Link).link
        except (msgspec.DecodeError, ValueError) as error:
            raise Problem(400, "protocol", f"that shows no link: {error}", "body") from None
        opened = await self._visits.open(link)
        shown = {"key": opened.key, "role": opened.role, "name": opened.name, "expires_unix_s": opened.expires_unix_s}
        shown |= {"editable": EDITABLE, "piece_bytes": MODEL_PIECE_BYTES}
        shown |= {"token_uses_max": TOKEN_USES_MAX, "token_ttl_s_max": TOKEN_TTL_S_MAX}
        await exchange.answer(200, shown, {"Set-Cookie": self._cookie(cookie, opened.cookie, WEB_VISIT_S)})

    async def _ask(self, exchange: Exchange, secrets: Secrets) -> None:
        body = await exchange.read(WEB_ASK_BYTES_MAX)
        try:
            question: Any = _Ask.decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise _unread(str(error)) from None
        answer = await self._visits.ask(secrets, question, ANSWER_S + LATER_S.get(type(question), 0.0))
        await exchange.answer(200, answer, kind=JSON)


def _unread(text: str) -> Problem:
    """Return what is said of a request that cannot be read, in msgspec's words, with the field that it is about."""
    problem, at, path = text.rpartition(" - at `$.")
    field = path.rstrip("`") if at else "body"
    if at and ("matching regex" in problem or "of length" in problem):
        rule = CLIENT_PATTERN_RULE if field == "pattern" else NAME_RULE
        return Problem(400, "protocol", f"that is no name: {rule}", field)
    return Problem(400, "protocol", f"that cannot be asked by the page: {text}", field)


def _job(arguments: Mapping[str, str]) -> str:
    """Return the job that is looked at; empty: none.  Raise `Problem` for what `lifld` would not read."""
    job = arguments.get("job", "")
    try:
        return msgspec.convert({"type": "JobStatus", "job": job}, om.JobStatus).job
    except msgspec.ValidationError as error:
        raise Problem(400, "protocol", f"{job!r:.100} is no job: {error}", "job") from None
