"""The page's HTTP door with a node that is none behind it: what a cluster of any size would say, made up.

The door is the real process; at the other end of its link stands this in the place of `lifld`, which answers what the
command line asks.  Trees have the shape that the planner's have.

    python tests/page_stage.py --nodes 100 --clients 10000     (prints a link, and plays until it is ended)
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import secrets
import socket
import subprocess
import sys
import time
from typing import Any

from page_answers import Credentials, decisions, planned, refused_without_certificates, timeline

from lifl.core.errors import Refused
from lifl.core.identity import Identity
from lifl.core.planning.tree import Tree
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import http as hm
from lifl.core.trust.page_visits import PageVisits, visitor_of
from lifl.node.link import Link
from lifl.shm.checksum import StreamChecksum

ROUND_S = 20.0
"""What a round takes on this stage."""


class Play:
    """What the node says; `frozen` is the part of the running round that is over, if time is to stand still."""

    def __init__(self, nodes: int, clients: int, rounds: int = 200, frozen: float | None = None) -> None:
        self.random = random.Random(7)
        self.nodes = [f"{self.random.getrandbits(64):016x}" for _ in range(nodes)]
        self.clients = clients
        self.rounds = rounds
        self.begin_s = time.time()
        self.frozen = frozen
        self.hostile = ""
        """Stands among what the node says."""
        self.model_bytes = 3_000_000
        checksum = StreamChecksum()
        checksum.update(b"m" * self.model_bytes)
        self.digest = f"{checksum.finish():016x}"
        self.credentials: Credentials | None = None
        """None: the node has none."""
        self.cancelled: set[str] = set()
        self.drained: set[str] = set()
        share = clients // nodes
        self.trees = [
            Tree(share, 2 if share <= 64 else 32, 4 if share <= 64 else 8, len(self.nodes) - 1 if i == 0 else 0, i == 0)
            for i in range(nodes)
        ]

    @property
    def progress(self) -> float:
        """How much of the running round is over."""
        return self.frozen if self.frozen is not None else (time.time() - self.begin_s) / ROUND_S % 1.0

    @property
    def committed(self) -> int:
        """How many rounds are."""
        return self.rounds + (0 if self.frozen is not None else int((time.time() - self.begin_s) / ROUND_S))

    def tree(self) -> list[dict[str, Any]]:
        """The running round's tasks."""
        lines: list[dict[str, Any]] = []
        for index, (node, tree) in enumerate(zip(self.nodes, self.trees, strict=True)):
            due = sum(task.updates for task in tree.takers)
            speed = 0.6 + 0.8 * ((index * 37) % 100) / 100
            here = min(due, int(due * min(1.0, self.progress * 1.25 * speed)))
            left, sealed = here, set()
            for task in tree.tasks:
                took = min(task.updates, left)
                left -= took
                below = [child.number in sealed for child in task.children]
                inputs = (
                    took + sum(below) + (task.adopted if self.progress > 0.95 else int(task.adopted * self.progress))
                )
                done = inputs >= task.expect > 0 and (task.role != "top" or self.progress > 0.97)
                if done:
                    sealed.add(task.number)
                lines.append(
                    {
                        "address": task.number + 1,
                        "role": task.role,
                        "parent": task.parent.number + 1 if task.parent else 0,
                        "branch": index,
                        "number": task.number,
                        "parent_number": task.parent.number if task.parent else None,
                        "state": "sealed" if done else "running" if inputs else "waiting",
                        "inputs": inputs,
                        "expect": task.expect,
                        "updates": took,
                        "updates_expect": task.updates,
                        "pid": 4000 + task.number if inputs and not done else None,
                        "attempt": 1,
                        "cpu_s": 0.0123 if done else 0.0,
                        "node": node,
                        "clients": [f"hospital-{task.number * 2 + at}{self.hostile}" for at in range(took)]
                        if len(self.nodes) == 1
                        else [],
                    }
                )
        return lines

    def now(self, trees: bool) -> dict[str, Any]:
        """The running round."""
        lines = self.tree()
        here = sum(line["updates"] for line in lines)
        found = {
            "round": self.committed + 1,
            "attempt": 1,
            "phase": "open",
            "reason": "",
            "selected": int(self.clients * 1.1),
            "uploading": min(23, self.clients - here),
            "accepted": here,
            "counted": sum(line["updates"] for line in lines if line["state"] == "sealed"),
            "goal": self.clients,
            "quorum": int(self.clients * 0.8),
            "time_left_s": 600 - self.progress * ROUND_S,
            "between_bytes": 0,
            "nodes": len(self.nodes),
            "draining": [],
            "arriving": [f"hospital-{here + at}" for at in range(min(23, self.clients - here))],
            "waiting": [],
            "tasks": len(lines),
        }
        return found | ({"tree": lines[:2048]} if trees else {})

    def job(self, name: str, status: str, committed: int, rounds: int) -> dict[str, Any]:
        """A job's line."""
        return {
            "name": name,
            "status": "cancelled" if name in self.cancelled else status,
            "reason": "cancelled by an operator" if name in self.cancelled else "",
            "round": committed + 1,
            "rounds": rounds,
            "committed": committed,
            "clients": self.clients if status == "running" else 0,
            "rule": "fedavg",
            "metrics": self.metrics(committed),
            "submitted_unix_s": self.begin_s - 7200,
            "folder": f"/var/lib/lifl/models/{name}",
        }

    def metrics(self, number: int) -> dict[str, float]:
        """A committed round's metrics."""
        noise = random.Random(number).gauss(0, 0.012)
        return {
            "accuracy": 0.95 - 0.6 * math.exp(-number / 40) + noise,
            "loss": 2.1 * math.exp(-number / 55) + 0.12 + abs(noise),
        } | ({self.hostile: 1.0} if self.hostile else {})

    def round(self, number: int, trees: bool) -> dict[str, Any]:
        """A committed round."""
        rng = random.Random(number)
        took = ROUND_S * (0.7 + 0.5 * rng.random())
        receipt: dict[str, Any] = {
            "selected": int(self.clients * 1.1),
            "accepted": self.clients,
            "counted": self.clients,
            "expired": int(self.clients * 0.1),
            "weight": self.clients * 120.0,
            "bytes_in": self.clients * 46_800_000,
            "bytes_out": self.clients * 46_800_000,
            "bytes_between": (len(self.nodes) - 1) * 93_600_000,
            "cpu_s": {
                "workers": 0.012 * self.clients * (1 + rng.random() / 4),
                "gateway": 0.02 * self.clients,
                "lifld": 0.4,
            },
            "arena_peak_bytes": 700_000_000,
            "duration_s": took,
            "last_accepted_to_sealed_s": 0.03 * took * rng.random() + 0.4,
            "last_accepted_to_commit_s": 0.05 * took + 0.9,
            "workers_cold": rng.randrange(3),
            "workers_warm": min(60, self.clients // 8 + rng.randrange(4)),
            "workers_promoted": 3,
            "workers_shared": 1,
            "nodes": len(self.nodes),
            "redirector": "sockmap",
        }
        begun = [line | {"began_s": 0.1 * line["number"] % took} for line in self.tree()[:300]] if trees else []
        times = {"tree": begun, "timeline": timeline(self.clients, took, self.hostile)}
        receipt |= times if trees else {"tasks": {"leaf": 30, "middle": 4, "top": 1}}
        return {
            "round": number,
            "attempt": 1,
            "status": "committed",
            "reason": "",
            "committed_unix_s": self.begin_s - (self.rounds - number) * ROUND_S,
            "metrics": self.metrics(number),
            "path": f"/var/lib/lifl/models/mri-segmentation/round-{number}.safetensors",
            "digest": self.digest,
            "receipt": receipt,
        }

    def node_rows(self) -> list[dict[str, Any]]:
        """The rows of `lifl nodes`."""
        if len(self.nodes) == 1:
            return []
        return [
            {
                "node": node,
                "state": "alive" if index % 41 != 40 else "suspect",
                "drain": "draining" if node in self.drained else "",
                "coordinator": not index,
                "incarnation": 1,
                "control": f"10.0.{index // 250}.{index % 250 + 1}:7434",
                "gateway": f"10.0.{index // 250}.{index % 250 + 1}:7433",
                "since_s": time.time() - self.begin_s,
                "rate_per_s": 4 + (index * 13) % 17,
                "execution_s": 0.09,
                "capacity": 4.0,
                "residual": 1.0,
                "arena_bytes": 1 << 33,
                "arena_used_bytes": int((1 << 33) * ((index * 29) % 83) / 100),
                "workers": index % 5 + 1,
            }
            for index, node in enumerate(self.nodes)
        ]

    def snapshot(self) -> dict[str, Any]:
        """What `lifl top` shows, without trees."""
        up = time.time() - self.begin_s + 93_000
        node = {
            "node": self.nodes[0],
            "listen": ["10.0.0.1:7433"],
            "identity": "",
            "control": "10.0.0.1:7434",
            "http": "127.0.0.1:7480",
            "capacity": 4.0,
            "load": {"rate_per_s": 11.2 + 3 * math.sin(up / 7), "execution_s": 0.09},
            "state_dir": "/var/lib/lifl",
            "warnings": [self.hostile] if self.hostile else [],
            "uptime_s": up,
            "arena": {
                "bytes": 1 << 33,
                "used_bytes": int((1 << 32) * (0.6 + 0.3 * self.progress)),
                "peak_bytes": 5 << 30,
                "objects": 91,
                "waiting": 0,
            },
            "redirector": {"kind": "sockmap", "runs": 123_456},
            "gateway": {"pid": 4001, "received_bytes": int(up * 61e6), "sent_bytes": int(up * 7e6), "connections": 310},
            "cpu_s": {
                "lifld": up * 0.05,
                "gateway": up * 0.31 + math.sin(up / 3) / 2,
                "zygote": 3.0,
                "http": up * 0.01,
            },
            "zygote_pid": 4002,
            "store": None,
        }
        workers = [
            {
                "worker": i,
                "pid": 5000 + i,
                "tied": False,
                "state": "busy" if i < 3 else "idle",
                "role": "leaf" if i < 2 else "top",
                "job": "mri-segmentation",
                "round": self.committed + 1,
                "address": i,
                "tasks": int(i < 3),
                "tasks_done": 40 - i,
                "inputs": 1,
                "expect": 2,
            }
            for i in range(5)
        ]
        jobs = [
            {**self.job("mri-segmentation", "running", self.committed, 400), "now": self.now(False)},
            {**self.job("keyboard-next-word", "waiting", 0, 1000), "metrics": {}, "now": None},
            {**self.job("tabular-fraud", "finished", 50, 50), "now": None},
            {
                **self.job("ecg-arrhythmia", "failed", 12, 80),
                "reason": "round 13 failed 3 times: 2 of 8 updates came in 600 s",
                "now": None,
            },
        ]
        return {"node": node, "nodes": self.node_rows(), "workers": workers, "jobs": jobs}

    def answer(self, question: Any) -> dict[str, Any]:
        """The answer to a request of the command line.  Raises `Refused`."""
        match question:
            case om.Snapshot():
                return self.snapshot()
            case om.JobStatus(job, last, before, number):
                first = next(each for each in self.snapshot()["jobs"] if each["name"] == job)
                is_first = job == "mri-segmentation"
                numbers = range(1, first["committed"] + 1)
                wanted = (
                    [number]
                    if number is not None
                    else [each for each in numbers if each < before[0]][-last:]
                    if last
                    else []
                )
                config = {
                    "job": {"name": job, "rounds": first["rounds"]},
                    "aggregation": {"rule": "fedavg", "fan_in": 2},
                    "selection": {"clients_per_round": self.clients, "goal": None},
                    "client": {"options": {"lr": 0.05, "schedule": {"cosine": [0.1, 0.001]}}},
                }
                kept = [[max(1, first["committed"] - 20), first["committed"]]] if first["committed"] else []
                best = {"round": first["committed"] - 3, "metric": "accuracy", "value": 0.9412} if kept else None
                rows = [self.round(each, question.trees) for each in wanted]
                return {
                    "job": first,
                    "config": config,
                    "now": self.now(True) if is_first else None,
                    "rounds": rows,
                    "models": {"rounds": kept, "kept": None, "best": best},
                    "more": None,
                }
            case om.JobClients(job, after):
                return {"clients": [self.client(i) for i in range(self.clients)] if not after else [], "more": None}
            case om.CancelJob(job):
                self.cancelled.add(job)
                return {"job": job, "status": "cancelled"}
            case om.DrainNode(node, undo):
                (self.drained.discard if undo else self.drained.add)(node)
                return {"node": {"node": node, "drain": "" if undo else "drained"}}
            case om.PauseJob(job) | om.ResumeJob(job):
                return {"job": job, "status": "running", "committed": self.committed, "rounds": 400}
            case om.EditJob(job, overrides):
                if not any(override.startswith("client.options") for override in overrides):
                    raise Refused("bad-config", "aggregation.rule", "aggregation.rule: cannot be changed any more")
                return {"job": job, "changes": {"client.options.lr": 0.01}, "from_round": self.committed + 2}
            case om.RemoveJob(job):
                return {"job": job, "folder": f"/var/lib/lifl/models/{job}", "files": 0, "bytes": 0}
            case om.PutModel(_, offset, data, total_bytes):
                got = offset + len(data)
                return {"received": got, "path": "/var/lib/lifl/models/uploaded.safetensors" * (got == total_bytes)}
            case om.ReadModel(job, _, offset):
                return {"bytes": self.model_bytes, "data": b"m" * min(1 << 20, self.model_bytes - offset)}
            case om.SubmitJob(config):
                return {"job": config["job"]["name"], "rounds": config["job"]["rounds"], "queue": None, "disk": None}
            case om.PlanJob(config):
                return planned(self.nodes, config["selection"]["clients_per_round"], self.hostile)
            case om.PlansOfRound(_, _, after):
                return decisions(self.nodes, self.clients, after)
            case om.ReadAudit(before):
                events = ("job.submitted", "cli.refused", "client.join", "page.opened", "token.made")
                lines = [
                    {
                        "seq": seq,
                        "at": f"2026-11-30T07:{seq // 60 % 60:02}:{seq % 60:02}.123Z",
                        "event": events[seq % len(events)],
                        "who": self.hostile or ("operator owner", "page operator anna", "client hospital-7")[seq % 3],
                        "job": "mri-segmentation",
                        "number": seq,
                        "text": self.hostile,
                    }
                    for seq in range(max(1, min(before, 524) - 200), min(before, 524))
                ]
                chain = {"first": 1, "last": 523, "digest": "9f" * 32, "torn": 0, "unmarked_bytes": 0, "broken": ""}
                more = lines[0]["seq"] if lines and lines[0]["seq"] > 1 else None
                return {"lines": lines, "more": more, "chain": chain if question.verify else None}
            case om.ReadLog():
                said = "round.committed job=mri-segmentation accepted=60"
                level = lambda i: "WARNING" if i % 17 == 5 else "INFO"  # noqa: E731
                lines = [f"2026-11-30 07:{i // 60:02}:{i % 60:02},123 {level(i)} {said} round={i}" for i in range(300)]
                return {"lines": lines}
        if isinstance(question, om.ListTokens) and self.credentials is None:
            raise refused_without_certificates()
        if self.credentials is not None and (said := self.credentials.answer(question)) is not None:
            return said
        raise Refused("failed", "", f"this stage has no answer to {type(question).__name__}")

    def client(self, index: int) -> dict[str, Any]:
        """A client's record."""
        chosen = 20 + index % 180
        return {
            "client": f"hospital-{index:05}{self.hostile}",
            "here": bool(index % 9),
            "level": index % 4,
            "selected": chosen,
            "delivered": chosen - index % 7,
            "late": index % 3,
            "left": index % 2,
            "declined": 0,
            "spoilt": 0,
            "misses": index % 3,
            "properties": {"labels": {"region": self.hostile or "eu"}, "examples": 100 * index},
        }


class Stage:
    """The door's process, and what stands in `lifld`'s place.  Made within a running loop."""

    def __init__(self, play: Play, role: str = "operator") -> None:
        self.play = play
        self.role: Any = role
        self.asked: list[Any] = []
        self.visits = PageVisits()
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._connections: set[Link] = set()
        ours, theirs = socket.socketpair()
        with socket.create_server(("127.0.0.1", 0)) as listener, theirs:
            command = [
                sys.executable,
                "-P",
                "-m",
                "lifl.node.http.main",
                "--fd",
                str(theirs.fileno()),
                "--http-fd",
                str(listener.fileno()),
            ]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno(), listener.fileno()])
        self._link: Link = Link(ours, hm.FromHttp, self._heard, lambda _error: None, takes_descriptors=True)

    def link(self) -> str:
        """A link to the page."""
        owner = Identity("operator", "owner")
        secret = secrets.token_urlsafe(32)
        self.visits.link(secret, visitor_of(owner, self.role), time.time())
        self._tell()
        return f"http://{self.ready.result()}/#link={secret}"

    def _tell(self) -> None:
        self._link.send(hm.VisitsTold(self.visits.links(), self.visits.visits()))

    def _heard(self, message: Any) -> None:
        match message:
            case hm.HttpReady():
                self.ready.set_result(message.address)
            case hm.LinkShown(number, link):
                cookie, key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
                visit = self.visits.open(link, cookie, key, time.time())
                self._tell()
                who = visit.visitor.identity
                self._link.send(hm.VisitOpened(number, cookie, key, who.role, who.name, visit.expires_unix_s))
            case hm.VisitorCame():
                sock = socket.socket(fileno=self._link.taken_descriptor())
                link: Link = Link(
                    sock,
                    om.FromCli,
                    lambda question: self._answer(link, question),
                    lambda _error: self._connections.discard(link),
                )
                self._connections.add(link)
            case hm.VisitEnded(cookie, key):
                self.visits.end(cookie, key)
                self._tell()

    def _answer(self, link: Link, question: Any) -> None:
        self.asked.append(question)
        try:
            link.send(om.Answer(self.play.answer(question)))
        except Refused as refused:
            link.send(cm.Refusal(refused.code, refused.field, refused.text))

    def close(self) -> None:
        """End it."""
        self._link.send(gm.Drain())
        self._link.close()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--frozen", type=float)
    parser.add_argument("--role", default="operator")
    given = parser.parse_args()
    stage = Stage(Play(given.nodes, given.clients, given.rounds, given.frozen), given.role)
    try:
        await stage.ready
        print(stage.link(), flush=True)
        while True:
            await asyncio.sleep(60.0)
    finally:
        stage.close()


if __name__ == "__main__":
    asyncio.run(_main())
