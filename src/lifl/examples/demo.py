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
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from lifl.examples import digits
from lifl.examples.running import (
    LIFL,
    STOP_TIMEOUT_S,
    DemoFailed,
    check_gone,
    lifl,
    line,
    print_logs,
    process,
    processes,
    round_text,
)

CLIENTS = 16
ACCURACY_MIN = 0.93


def main() -> None:
    """Run the demo."""
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
        print_logs([work / "state" / "lifld.log", *sorted(work.glob("trainer-*.log"))])
        print(f"The demo failed: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"The demo took {time.monotonic() - started_s:.0f} s.")
    if accuracy < ACCURACY_MIN:
        print(f"Test accuracy {accuracy:.3f} is below {ACCURACY_MIN}.", file=sys.stderr)
        sys.exit(1)


def run(work: Path, config: Path, node_config: Path, output: Path) -> float:
    """Run the demo in the private folder `work`; return the last model's test accuracy.  Raise `DemoFailed`."""
    data = work / "digits.npz"
    digits.save(data)
    train, test = digits.load(data)
    print(f"data: scikit-learn's digits, {len(train.labels)} to train, {len(test.labels)} to test\n")
    with _node(work / "state", node_config) as node:
        state = ["--state", node["state_dir"]]
        with ExitStack() as stack:
            watch = stack.enter_context(process([*LIFL, "submit", str(config), "--watch", "--json", *state]))
            job = json.loads(line(watch))["job"]
            print(f"job {job}: {CLIENTS} trainer processes, one share of the data each")
            trainers = [
                stack.enter_context(process(_trainer(node, job, client, data), work / f"trainer-{client:02}.log"))
                for client in range(CLIENTS)
            ]
            model = _follow(watch, test)
            for client, trainer in enumerate(trainers):
                if trainer.wait(STOP_TIMEOUT_S):
                    raise DemoFailed(f"trainer {client} ended with code {trainer.returncode}")
        print()
        lifl("status", job, *state)
        output.mkdir(parents=True, exist_ok=True)
        target = output / f"{job}.safetensors"
        lifl("model", job, "-o", str(target), *state)
        accuracy = digits.evaluate(load_file(target), test)["accuracy"]
        if load_file(target).keys() != load_file(model).keys():
            raise DemoFailed(f"{target} is not the model that was committed last")
        pids = processes(node["state_dir"])
    check_gone(pids, node["node"])
    print(f"\ntest accuracy {accuracy:.3f} after the last round; the model: {target.resolve()}")
    print("the node is down; no process and no shared memory is left")
    return accuracy


@contextmanager
def _node(state_dir: Path, config: Path) -> Iterator[dict[str, Any]]:
    """Run a node of its own on a free port, stopped at the end."""
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
        lifl("down", "--state", str(state_dir))


def _trainer(node: dict[str, Any], job: str, client: int, data: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "lifl.examples.digits_trainer"),
        *("--gateway", node["listen"][0], "--job", job),
        *("--client", str(client), "--clients", str(CLIENTS), "--data", str(data)),
    ]


def _follow(watch: subprocess.Popen[str], test: digits.Examples) -> Path:
    """Print each committed round with its accuracy on the test data; return the last model's file."""
    path: Path | None = None
    while True:
        event = json.loads(line(watch))
        if event["event"] == "round.committed":
            path = Path(event["path"])
            scores = digits.evaluate(load_file(path), test)
            print(round_text(event, scores))
        elif event["event"] == "round.failed":
            print(f"  round {event['round']:>2}  failed: {event['reason']}")
        elif event["event"] == "job.over":
            if event["status"] != "finished" or path is None:
                raise DemoFailed(f"the job is {event['status']}: {event.get('reason')}")
            return path


if __name__ == "__main__":
    main()
