"""A whole federated training on this machine: a node, 16 trainer processes, real data.

    python -m lifl.examples.demo            (or: make demo)

Everything goes through what users use: `lifl up`, `lifl submit`, trainers with `lifl.Client`, `lifl
status`, `lifl down`.  The node lives in a private state folder on a free port, so a node that already runs
here is not touched.  At the end the demo checks the accuracy on the held-out test data and that nothing was
left behind; it exits 1 when either fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from safetensors.numpy import load_file

from lifl.examples import digits

CLIENTS = 16
ACCURACY_MIN = 0.93
LIFL = [sys.executable, "-m", "lifl_cli.main"]
STOP_TIMEOUT_S = 20.0
LOG_TAIL_LINES = 15


class DemoFailed(Exception):
    """The demo did not end as it should; the text says how."""


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description="Trains a digits classifier with 16 clients on this machine.")
    parser.add_argument("--config", type=Path, default=Path("configs/digits.toml"))
    parser.add_argument("--node", type=Path, default=Path("configs/node.toml"))
    parser.add_argument("--output", type=Path, default=Path(".demo"), help="where the trained model goes")
    given = parser.parse_args()
    started_s = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="lifl-demo-"))
    try:
        accuracy = run(work, given.config, given.node, given.output)
    except DemoFailed as error:
        _print_logs(work)
        print(f"The demo failed: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"The demo took {time.monotonic() - started_s:.0f} s.")
    if accuracy < ACCURACY_MIN:
        print(f"Test accuracy {accuracy:.3f} is below {ACCURACY_MIN}.", file=sys.stderr)
        sys.exit(1)


def run(work: Path, config: Path, node_config: Path, output: Path) -> float:
    """The demo in the private folder `work`; returns the last model's test accuracy.  Raises `DemoFailed`."""
    data = work / "digits.npz"
    digits.save(data)
    train, test = digits.load(data)
    print(f"data: scikit-learn's digits, {len(train.labels)} to train, {len(test.labels)} to test\n")
    with _node(work / "state", node_config) as node:
        state = ["--state", node["state_dir"]]
        with ExitStack() as stack:
            watch = stack.enter_context(_process([*LIFL, "submit", str(config), "--watch", "--json", *state]))
            job = json.loads(_line(watch))["job"]
            print(f"job {job}: {CLIENTS} trainer processes, one share of the data each")
            trainers = [
                stack.enter_context(_process(_trainer(node, job, client, data), work / f"trainer-{client:02}.log"))
                for client in range(CLIENTS)
            ]
            model = _follow(watch, test)
            for client, trainer in enumerate(trainers):
                if trainer.wait(STOP_TIMEOUT_S):
                    raise DemoFailed(f"trainer {client} ended with code {trainer.returncode}")
        print()
        _lifl("status", job, *state)
        output.mkdir(parents=True, exist_ok=True)
        target = output / f"{job}.safetensors"
        _lifl("model", job, "-o", str(target), *state)
        accuracy = digits.evaluate(load_file(target), test)["accuracy"]
        if load_file(target).keys() != load_file(model).keys():
            raise DemoFailed(f"{target} is not the model that was committed last")
        processes = _processes(state)
    _check_gone(processes, Path(f"/dev/shm/lifl-{node['node']}"))
    print(f"\ntest accuracy {accuracy:.3f} after the last round; the model: {target.resolve()}")
    print("the node is down; no process and no shared memory is left")
    return accuracy


@contextmanager
def _node(state_dir: Path, config: Path) -> Iterator[dict[str, Any]]:
    """A node of its own on a free port, stopped at the end."""
    flags = ["--config", str(config), "--state", str(state_dir), "--listen", "127.0.0.1:0"]
    started = subprocess.run([*LIFL, "up", "-d", "--json", *flags], stdout=subprocess.PIPE, check=False)
    if started.returncode:
        raise DemoFailed("the node did not start")
    node = json.loads(started.stdout)
    print(f"lifld {node['node']} listens on {', '.join(node['listen'])}")
    print(f"redirector: {node['redirector']} ({node['why']})")
    try:
        yield node
    finally:
        _lifl("down", "--state", str(state_dir))


def _trainer(node: dict[str, Any], job: str, client: int, data: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "lifl.examples.digits_trainer"),
        *("--gateway", node["listen"][0], "--job", job),
        *("--client", str(client), "--clients", str(CLIENTS), "--data", str(data)),
    ]


def _follow(watch: subprocess.Popen[str], test: digits.Examples) -> Path:
    """Prints each committed round with its accuracy on the test data; returns the last model's file."""
    path: Path | None = None
    while True:
        event = json.loads(_line(watch))
        if event["event"] == "round.committed":
            path = Path(event["path"])
            scores = digits.evaluate(load_file(path), test)
            receipt = event["receipt"]
            print(
                f"  round {event['round']:>2}  test accuracy {scores['accuracy']:.3f}  "
                f"loss {scores['loss']:.3f}  (clients: {event['metrics']['accuracy']:.3f})  "
                f"{event['counted']} counted, {receipt['duration_s']:.2f} s, "
                f"commit {receipt['last_accepted_to_commit_s'] * 1000:.0f} ms after the last update"
            )
        elif event["event"] == "round.failed":
            print(f"  round {event['round']:>2}  failed: {event['reason']}")
        elif event["event"] == "job.over":
            if event["status"] != "finished" or path is None:
                raise DemoFailed(f"the job is {event['status']}: {event.get('reason')}")
            return path


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise DemoFailed(f"`lifl submit` ended with code {process.wait()}")
    return line


@contextmanager
def _process(command: Sequence[str], log: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A child process that does not outlive the block; its stderr goes to `log` when one is given."""
    # One core's worth of BLAS each: 16 trainers share the machine.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with ExitStack() as stack:
        stderr = stack.enter_context(log.open("w")) if log else None
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE if not log else stderr, stderr=stderr, env=environment, text=True
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _lifl(*arguments: str) -> None:
    sys.stdout.flush()
    if subprocess.run([*LIFL, *arguments], check=False).returncode:
        raise DemoFailed(f"`lifl {' '.join(arguments)}` failed")


def _processes(state: Sequence[str]) -> list[int]:
    """The pids of the node: lifld and all its children."""
    shown = subprocess.run([*LIFL, "top", "--json", *state], stdout=subprocess.PIPE, check=True)
    return [int(pid) for pid in json.loads(shown.stdout)["processes"]]


def _check_gone(processes: Sequence[int], segment: Path) -> None:
    left = [pid for pid in processes if _lives(pid)]
    if left:
        raise DemoFailed(f"processes of the node still run: {left}")
    if segment.exists():
        raise DemoFailed(f"shared memory is left: {segment}")


def _lives(pid: int) -> bool:
    """Whether the process runs; a zombie has ended, though its entry stays until its parent looks."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _print_logs(work: Path) -> None:
    for log in [work / "state" / "lifld.log", *sorted(work.glob("trainer-*.log"))]:
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        if lines:
            print(f"--- {log.name}", *lines[-LOG_TAIL_LINES:], sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
