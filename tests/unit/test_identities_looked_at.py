"""`lifl doctor` about identities: expired, soon expiring, open to others; and the clock against the authority's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from certificates import Authority
from lifl_cli import identities, repair
from lifl_cli.identities import Looked, look

from lifl.core.errors import ResourceFault
from lifl.core.limits import CLOCK_SKEW_S
from lifl.core.protocol.enrolment import TheAuthority
from lifl.node.authority.authority_file import write_authority
from lifl.node.authority.certificate_authority import make_authority
from lifl.tls import enrolment
from lifl.tls.folder import save


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIFL_IDENTITY", raising=False)
    return tmp_path / "home"


def only(found: list[Looked]) -> Looked:
    (one,) = found
    return one


def test_nothing_is_said_where_there_is_no_identity(home: Path, tmp_path: Path) -> None:
    assert list(look(tmp_path / "state")) == []


@pytest.mark.parametrize(
    ("days", "since_days", "level", "said"),
    [
        (20, 10, "ok", "until"),
        (16, 14, "ok", "until"),
        (7, 23, "warn", "was not renewed"),
        (-1, 31, "fail", "expired"),
        (30, -1, "fail", "not valid before"),
    ],
)
def test_a_certificate_is_told_ahead_of_its_end(
    home: Path, tmp_path: Path, days: float, since_days: float, level: str, said: str
) -> None:
    Authority().enroll(tmp_path / "state" / "identity", "node", "n", days=days, since_days=since_days)
    found = only(list(look(tmp_path / "state")))
    assert (found.level, found.what) == (level, "identity") and said in found.text
    assert bool(found.fix) == (level != "ok")


def test_an_accounts_identities_are_looked_at_too(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Authority().enroll(home / ".config/lifl/identities/10.0.0.1_7434", "client", "a", days=-1, since_days=31)
    Authority().enroll(tmp_path / "mine", "operator", "b")
    monkeypatch.setenv("LIFL_IDENTITY", str(tmp_path / "mine"))
    assert [(each.level, each.what) for each in look(tmp_path / "state")] == [
        ("ok", "own identity"),
        ("fail", "own identity"),
    ]


@pytest.mark.parametrize(("part", "remedy"), [("", "chmod 700"), ("key.pem", "chmod 600")])
def test_what_others_can_read_is_told_with_the_remedy(home: Path, tmp_path: Path, part: str, remedy: str) -> None:
    folder = tmp_path / "state" / "identity"
    Authority().enroll(folder, "node", "n")
    (folder / part).chmod(0o755)
    found = only(list(look(tmp_path / "state")))
    assert found.level == "fail" and remedy in found.text


def test_an_authority_that_others_can_read_is_told(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    write_authority(path, make_authority("c", time.time()))
    assert only(list(look(tmp_path))).level == "ok"
    path.chmod(0o644)
    found = only(list(look(tmp_path)))
    assert found.level == "fail" and "chmod 600" in found.fix and "new cluster" in found.fix


DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("made_days_ago", "level", "said"),
    [
        (0, "ok", "of this cluster"),
        (3600, "warn", "until"),
        (3660, "fail", "expired"),
        (-1, "fail", "not valid before"),
    ],
)
def test_an_authority_is_told_ahead_of_its_end_with_what_can_be_done_where_it_is(
    home: Path, tmp_path: Path, made_days_ago: float, level: str, said: str
) -> None:
    """Nobody lets the authority's own node in by a token, and where no `lifld` runs nothing can be rotated."""
    write_authority(tmp_path / "authority.pem", make_authority("c", time.time() - made_days_ago * DAY_S))
    Authority().enroll(tmp_path / "identity", "node", "n", days=-1, since_days=31)
    authority, identity = look(tmp_path)
    assert (authority.level, authority.what) == (level, "authority") and said in authority.text
    assert (level == "fail") == ("move authority.pem and identity away" in authority.fix)
    assert identity.level == "fail" and "lifl up" in identity.fix and "token" not in identity.fix


@pytest.mark.parametrize(("days", "since_days"), [(-1, 31), (30, -1)])
def test_an_identity_that_only_the_clock_speaks_against_is_not_set_aside(
    home: Path, tmp_path: Path, days: float, since_days: float
) -> None:
    """It may be the clock that is wrong, and a token is needed to come by another one."""
    Authority().enroll(tmp_path / "identity", "node", "n", days=days, since_days=since_days)
    assert list(repair.damages(tmp_path)) == []
    (tmp_path / "identity/key.pem").write_text("no key")
    assert len(list(repair.damages(tmp_path))) == 1


@pytest.mark.parametrize(
    ("ahead_s", "level"),
    [(0.0, "ok"), (60.0, "warn"), (-60.0, "warn"), (CLOCK_SKEW_S + 60, "fail"), (-3600.0, "fail")],
)
def test_the_clock_is_compared_with_the_authoritys(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float, level: str
) -> None:
    monkeypatch.setattr(enrolment, "authority_at", lambda _home: TheAuthority(b"", time.time() + ahead_s))
    Authority().enroll(tmp_path / "identity", "node", "n")
    save(tmp_path / "identity", home=b"10.0.0.1:7434")
    found = list(look(tmp_path))
    assert [(each.level, each.what) for each in found] == [("ok", "identity"), (level, "clock")]
    assert "10.0.0.1:7434" in found[1].text


def test_a_clock_that_cannot_be_compared_is_no_failure(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(home: str) -> TheAuthority:
        raise ResourceFault(f"{home} cannot be reached")

    monkeypatch.setattr(enrolment, "authority_at", silent)
    Authority().enroll(tmp_path / "identity", "node", "n")
    save(tmp_path / "identity", home=b"10.0.0.1:7434")
    assert list(look(tmp_path))[-1].level == "warn"
    assert identities.SKEW_WARN_S < CLOCK_SKEW_S
