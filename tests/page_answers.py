"""What the stage of the page (`page_stage.py`) answers about tokens, certificates, plans and times, made up."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from lifl.core.errors import Refused
from lifl.core.planning.plan import NodeFacts, PlanRequest
from lifl.core.planning.planner import make_plan
from lifl.core.protocol import cli as om


class Credentials:
    """Tokens and certificates; `hostile` stands among what is said of them."""

    def __init__(self, hostile: str = "", certificates: int = 70) -> None:
        now = time.time()
        self.revoked: set[str] = set()
        self.tokens = [
            _token("a1b2c3d4", "client", "hospital-*", now + 600, jobs=["mri-segmentation"], uses=16, used=3),
            _token("b2c3d4e5", "client", f"clinic-7{hostile}", now + 86_400, jobs=["mri-segmentation"], bearer=True),
            _token("c3d4e5f6", "node", "*", now - 60, used=1, state="used up"),
        ]
        self.certificates = [
            {
                "serial": f"{(index * 0x9E3779B97F4A7C15) % (1 << 64):016x}{index:024x}",
                "role": ("client", "client", "node", "operator", "reader")[index % 5],
                "name": f"hospital-{index:05}{hostile}",
                "jobs": ["mri-segmentation", "ecg-arrhythmia"] if index % 5 == 1 else [],
                "token": "a1b2c3d4" if index % 5 < 2 else "",
                "issued_unix_s": now - 3600.0,
                "expires_unix_s": now + 86_400.0 * (index % 60),
                "key_since_unix_s": now - 3600.0,
            }
            for index in range(certificates)
        ]

    def answer(self, question: Any) -> dict[str, Any] | None:
        """The answer to what is asked about them; None when it is about something else."""
        match question:
            case om.ListTokens():
                return {"tokens": [each | self._state(each["number"], each["state"]) for each in self.tokens]}
            case om.ListCertificates(after):
                half = len(self.certificates) // 2  # in two pieces
                lines = self.certificates[half:] if after else self.certificates[:half]
                return {
                    "certificates": [each | self._state(each["serial"], "valid") for each in lines],
                    "more": None if after else 7,
                }
            case om.CreateToken() | om.CreateBearer():
                expires = time.time() + question.ttl_s
                return {
                    "token": f"LIFL1-d4e5f6a7-{'0f' * 32}-{'s' * 43}",
                    "number": "d4e5f6a7",
                    "expires_unix_s": expires,
                }
            case om.RevokeToken(number):
                self.revoked.add(number)
                return {"number": number}
            case om.RevokeCertificate(which):
                self.revoked |= {
                    each["serial"]
                    for each in self.certificates
                    if which in (each["serial"], f"{each['role']}/{each['name']}")
                }
                return {"revoked": [which]}
            case om.RenewCertificate():
                return {}
            case om.RotateAuthority():
                return {"digest": "ab" * 32}
        return None

    def _state(self, number: Any, state: str) -> dict[str, Any]:
        return {"state": "revoked" if number in self.revoked else state}


def _token(number: str, role: str, pattern: str, expires_unix_s: float, **more: Any) -> dict[str, Any]:
    line = {"number": number, "role": role, "pattern": pattern, "expires_unix_s": expires_unix_s}
    return {**line, "jobs": [], "uses": 1, "used": 0, "bearer": False, "state": "valid"} | more


def planned(nodes: list[str], updates: int, hostile: str = "") -> dict[str, Any]:
    """What is answered to PlanJob."""
    facts = tuple(NodeFacts(f"n{node}", 40.0, 8 << 30) for node in nodes)
    request = PlanRequest(updates, 46_800_000, 93_600_000, facts)
    made = msgspec.to_builtins(make_plan(request))
    made["nodes"][0]["reasons"] = [*made["nodes"][0]["reasons"], *([hostile] if hostile else [])]
    return {
        "request": msgspec.to_builtins(request),
        "plan": made,
        "treatment": [f"bn.running_mean is taken from the largest update {hostile}".strip()],
    }


def decisions(nodes: list[str], updates: int, after: int) -> dict[str, Any]:
    """What is answered to PlansOfRound: two attempts in two pieces, and a row that cannot be read."""
    if after:
        return {"decisions": [{"fault": "its row is damaged"}], "more": None}
    about = {name: value for name, value in planned(nodes, updates).items() if name != "treatment"}
    return {"decisions": [{"attempt": 1, "decided_unix_s": time.time(), **about}], "more": 1}


def timeline(updates: int, took_s: float, hostile: str = "") -> dict[str, Any]:
    """When what happened in a round of a receipt."""
    step = took_s * 0.8 / max(1, updates)
    return {
        "began_s": -0.4,
        "sealed_s": took_s * 0.9,
        "saved_s": took_s * 0.95,
        "ended_s": took_s,
        "updates": {f"hospital-{at:05}{hostile}": (at * step, at * step + took_s * 0.15) for at in range(updates)},
    }


def refused_without_certificates() -> Refused:
    """What a node says that has none."""
    text = "this node has no certificates: it listens on this machine alone, or with --insecure"
    return Refused("not-secured", "", f"{text}; one that others reach (--listen HOST:PORT) has")
