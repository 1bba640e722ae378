"""A federated training on three nodes, one of which is killed while a round runs.

    python -m lifl.examples.demo_cluster            (or: make demo-cluster)

The nodes are network namespaces of this machine (root is needed, else the demo says so and ends), the 60 clients stand
in a fourth one: six processes with ten clients each, for sixty interpreters would be too much for a small machine.
All goes through what users use: `lifl up --join`, `lifl token create`, `lifl enroll`, `lifl plan`, `lifl submit`,
`lifl status`, `lifl down`.  All that passes between the four is TLS: the first node makes the cluster's authority, one
token lets the two other nodes in, and one the clients, each of which gets a certificate in its name.

One of the six trainer processes is stopped in the round of the kill, so that the round cannot be over before a node
dies in its middle; then it goes on.  In the end each committed round must have counted each of the 60 updates once
(60 are counted, and their weights add up to the number of training examples), the accuracy on the held-out test data
must be good, and nothing may be left behind; the demo exits 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from lifl.examples import digits
from lifl.examples.digits_trainer import client_name
from lifl.examples.machines import Machine, wait_alive
from lifl.examples.netns import Host, network, why_not
from lifl.examples.running import (
    LIFL,
    STOP_TIMEOUT_S,
    DemoFailed,
    asked,
    check_gone,
    lifl,
    line,
    print_logs,
    process,
    round_text,
)

CLIENTS, PROCESSES = 60, 6
ACCURACY_MIN = 0.93
KILL_ROUND = 3
BACK_AFTER_ROUNDS = 3
"""So many committed rounds after the kill the node comes back."""
ARENA = "64MiB"
ENROLLING = 4
"""So many `lifl enroll` at a time."""


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Trains a digits classifier on three nodes, and kills one of them.")
    parser.add_argument("--config", type=Path, default=Path("configs/digits-cluster.toml"))
    parser.add_argument("--output", type=Path, default=Path(".demo"), help="where the trained model goes")
    given = parser.parse_args()
    if reason := why_not():
        print(f"The cluster demo makes three machines of one, but {reason}.  Nothing was started.")
        return
    started_s = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="lifl-demo-"))
    try:
        accuracy = Demo(work, given.config).run(given.output)
    except DemoFailed as error:
        print_logs([*sorted(work.glob("*/lifld.log")), *sorted(work.glob("trainers-*.log"))])
        print(f"The demo failed: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"The demo took {time.monotonic() - started_s:.0f} s.")
    if accuracy < ACCURACY_MIN:
        print(f"Test accuracy {accuracy:.3f} is below {ACCURACY_MIN}.", file=sys.stderr)
        sys.exit(1)


class Demo:
    """The demo in the private folder `work`."""

    def __init__(self, work: Path, config: Path) -> None:
        self.work = work
        self.config = config
        self.data = work / "digits.npz"
        self.machines: list[Machine] = []
        self.trainers: list[subprocess.Popen[str]] = []
        self.victim: Machine | None = None
        self.killed_in = 0

    def run(self, output: Path) -> float:
        """Run it all; return the last model's test accuracy.  Raise `DemoFailed`."""
        digits.save(self.data)
        train, test = digits.load(self.data)
        print(f"data: scikit-learn's digits, {len(train.labels)} to train, {len(test.labels)} to test\n")
        with network("a", "b", "c", "clients") as net:
            *hosts, clients = net.hosts
            with self._nodes(hosts):
                self._enroll(clients)
                job, home = self._train(clients, test)
                print()
                lifl("status", job, "--state", home)
                self._check_rounds(asked(home, "status", job), len(train.labels))
                output.mkdir(parents=True, exist_ok=True)
                target = output / f"{job}.safetensors"
                lifl("model", job, "-o", str(target), "--state", home)
                accuracy = digits.evaluate(load_file(target), test)["accuracy"]
        for machine in self.machines:
            check_gone(machine.pids, machine.info["node"])
        print(f"\ntest accuracy {accuracy:.3f} after the last round; the model: {target.resolve()}")
        print("all nodes are down; no process, no shared memory and no network is left")
        return accuracy

    @contextmanager
    def _nodes(self, hosts: list[Host]) -> Iterator[None]:
        with ExitStack() as stack:
            for host in hosts:
                machine = Machine(host, self.work, *self._joining(len(hosts) - 1))
                self.machines.append(machine)
                stack.callback(machine.down)  # the first node, which coordinates, comes last
                machine.up()
                print(f"node {host.name}: {machine.info['node']} at {machine.gateway}, {machine.info['redirector']}")
            wait_alive(self.machines)
            lifl("nodes", "--state", str(self.machines[0].state_dir))
            yield

    def _joining(self, others: int) -> tuple[str, tuple[str, ...], Path | None]:
        """Return how the next node comes: whom it joins, with which flags, by which token."""
        flags = ("--arena-bytes", ARENA)
        if not self.machines:
            return "", flags, None
        token = self.work / "nodes.token"
        if not token.exists():
            self.machines[0].token(token, "--role", "node", "--uses", str(others))
        return self.machines[0].control, flags, token

    def _enroll(self, clients: Host) -> None:
        """Get each client a certificate, as it would at home: its key is made where it is."""
        started_s = time.monotonic()
        home = self.machines[0]
        token = home.token(
            self.work / "clients.token", "--role", "client", "--name", "digits-*", "--uses", str(CLIENTS)
        )

        def enroll(number: int) -> None:
            name = client_name(number)
            flags = ["--token-file", str(token), "--name", name, "--identity", str(self.work / "identities" / name)]
            done = subprocess.run(
                clients.command(*LIFL, "enroll", home.control, *flags), stdout=subprocess.DEVNULL, check=False
            )
            if done.returncode:
                raise DemoFailed(f"client {name} was not let in")

        with ThreadPoolExecutor(ENROLLING) as pool:
            list(pool.map(enroll, range(CLIENTS)))
        print(f"\n{CLIENTS} clients have certificates, by `lifl enroll`, after {time.monotonic() - started_s:.0f} s")

    def _train(self, clients: Host, test: digits.Examples) -> tuple[str, str]:
        """Run the job to its end; return its name, and the coordinator's state folder."""
        home = str(self.machines[0].state_dir)
        plan = asked(home, "plan", str(self.config))
        print()
        lifl("plan", str(self.config), "--explain", "--state", home)
        used = [m for m in self.machines[1:] if m.info["node"] in plan["used"]]
        self.victim = (used or self.machines[1:])[0]
        with ExitStack() as stack:
            submitted = [*LIFL, "submit", str(self.config), "--watch", "--json", "--state", home]
            watch = stack.enter_context(process(submitted))
            job = str(json.loads(line(watch))["job"])
            print(f"\njob {job}: {CLIENTS} clients in {PROCESSES} trainer processes, one share of the data each")
            for number in range(PROCESSES):
                command = clients.command(*self._trainer(job, number))
                self.trainers.append(stack.enter_context(process(command, self.work / f"trainers-{number}.log")))
            self._follow(watch, job, test)
            for number, trainer in enumerate(self.trainers):
                if trainer.wait(STOP_TIMEOUT_S):
                    raise DemoFailed(f"trainer process {number} ended with code {trainer.returncode}")
        return job, home

    def _trainer(self, job: str, number: int) -> list[str]:
        each = CLIENTS // PROCESSES
        gateways = [machine.gateway for machine in self.machines]
        first = number % len(gateways)
        return [
            *(sys.executable, "-m", "lifl.examples.digits_trainer", "--job", job),
            *("--identities", str(self.work / "identities")),
            *("--gateway", ",".join(gateways[first:] + gateways[:first])),
            *("--client", f"{number * each}-{number * each + each - 1}", "--clients", str(CLIENTS)),
            *("--data", str(self.data)),
        ]

    def _follow(self, watch: subprocess.Popen[str], job: str, test: digits.Examples) -> None:
        """Print each committed round; kill a node in the middle of one, and have it come back later."""
        slow = self.trainers[-1]
        waiting = False  # the slow trainers are stopped, the node lives still
        accepted = 0
        while True:
            event = json.loads(line(watch))
            name, number = event["event"], event.get("round", 0)
            if name == "round.opened":
                accepted = 0
                if number >= KILL_ROUND and self.killed_in == 0 and not waiting:
                    slow.send_signal(signal.SIGSTOP)
                    waiting = True
            elif name == "update.accepted":
                accepted += 1
                if waiting and accepted == CLIENTS // 2:
                    self._kill(job, number, accepted)
                    slow.send_signal(signal.SIGCONT)
                    waiting = False
            elif name == "round.committed":
                print(round_text(event, digits.evaluate(load_file(event["path"]), test)))
                if self.killed_in and number == self.killed_in + BACK_AFTER_ROUNDS:
                    self._bring_back()
            elif name == "round.failed":
                print(f"  round {number:>2}  {event['reason']}")
            elif name == "job.over":
                if event["status"] != "finished":
                    raise DemoFailed(f"the job is {event['status']}: {event.get('reason')}")
                return

    def _kill(self, job: str, number: int, accepted: int) -> None:
        assert self.victim is not None
        print(f"\nin the middle of round {number}, after {accepted} of {CLIENTS} updates:")
        lifl("status", job, "--state", str(self.machines[0].state_dir))
        print(f"\nkill -9 of all processes of node {self.victim.host.name} ({self.victim.info['node']})\n")
        self.victim.kill()
        self.killed_in = number

    def _bring_back(self) -> None:
        assert self.victim is not None
        self.victim.up()
        print(f"\nnode {self.victim.host.name} is back\n")

    def _check_rounds(self, status: dict[str, Any], examples: int) -> None:
        committed = [each for each in status["rounds"] if each["status"] == "committed"]
        if [each["round"] for each in committed] != list(range(1, status["job"]["rounds"] + 1)):
            raise DemoFailed(f"committed rounds: {[each['round'] for each in committed]}")
        for each in committed:
            counted, weight = each["receipt"]["counted"], each["receipt"]["weight"]
            if (counted, weight) != (CLIENTS, examples):
                raise DemoFailed(f"round {each['round']} counted {counted} updates of {weight:g} examples in all")
        if not self.killed_in:
            raise DemoFailed("no node was killed: the rounds were over too soon")
        print(f"\neach of the {len(committed)} rounds counted the update of each of the {CLIENTS} clients once")


if __name__ == "__main__":
    main()
