"""Runs LIFL with the libraries that people have, two files at a time, with a summary: `make test-integrations`.

    python tests/integrations_run.py ENVIRONMENTS [ARGUMENTS OF PYTEST]

ENVIRONMENTS is the folder of the virtual environments, `integrations` and those of `ENVIRONMENT`.  Each file of
`tests/integrations` is a run of pytest of its own, ended after FILE_LIMIT_S with all that it has started; after
ALL_LIMIT_S no other begins.  So all of it takes ALL_LIMIT_S + FILE_LIMIT_S at most, and one that hangs harms no other.
What a file says is told when it is through.  Without arguments `docs/integrations.md` is written: what was run, with
which versions, and how it ended.
"""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import leaks
from skips import SLOW_TOO

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests/integrations"
PAGE = ROOT / "docs/integrations.md"
FILE_LIMIT_S = 900.0
ALL_LIMIT_S = 3600.0
AT_ONCE = 2
"""Files that run at a time: most of what they do is to wait, for servers and processes of the libraries that begin."""
SLOW = (
    "test_flower_runs",
    "test_nvflare",
    "test_page_browser",
    "test_guides_with_packages",
    "test_guides_with_etcd",
    "test_trackers",
    "test_transformers",
)
"""The slow ones begin first: none is left alone at the end."""
END_S = 60.0
"""How long pytest has to take down what a test has started."""
LIBRARIES: dict[str, tuple[str, ...]] = {
    "test_cnn_images": ("torch", "scikit-learn"),
    "test_flower": ("flwr",),
    "test_flower_runs": ("flwr", "ray"),
    "test_guide_flower": ("flwr", "torch"),
    "test_guides_with_etcd": ("grpcio",),
    "test_guides_with_packages": ("torch", "lightning", "peft", "jax"),
    "test_http_clients": ("schemathesis",),
    "test_init_torch": ("torch",),
    "test_jax": ("jax",),
    "test_lightning": ("lightning", "torch"),
    "test_nvflare": ("nvflare",),
    "test_nvflare_params": ("torch",),
    "test_page_browser": (),
    "test_peft": ("peft", "transformers", "torch"),
    "test_ray": ("ray",),
    "test_s3": ("s3fs", "moto"),
    "test_torch": ("torch",),
    "test_trackers": ("mlflow", "tensorboard", "wandb", "opentelemetry-sdk", "matplotlib"),
    "test_transformers": ("transformers", "accelerate", "peft", "torch"),
}
"""What each file is there for, which is told with its version: packages."""
PROGRAMS: dict[str, tuple[str, ...]] = {
    "test_guides_with_etcd": ("etcd",),
    "test_page_browser": ("chromium",),
    "test_trackers": ("prometheus",),
}
"""... and programs that are none."""
ENVIRONMENT = {"test_nvflare": "nvflare", "test_s3": "s3"}
"""The files that are run in an environment of their own: no versions of their packages go together with the others'."""
VERSIONS = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print("no", name)
"""


class Outcome(NamedTuple):
    """How the run of a file ended: of its tests how many passed, failed and were skipped, and for which reasons."""

    file: str
    passed: int
    failed: int
    skipped: Counter[str]
    took_s: float
    versions: str
    ended: str = ""
    """Why it has no whole result: its limit, or the exit code of a pytest that came to no tests."""

    @property
    def good(self) -> bool:
        """All that was run passed, and something was."""
        return not self.failed and not self.ended


def counted(report: Path) -> tuple[int, int, Counter[str]]:
    """Return what pytest's report (JUnit's XML) tells: passed, failed, and skipped by reason."""
    if not report.exists():
        return 0, 0, Counter()
    failed, skipped = 0, Counter[str]()
    cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    for case in cases:
        told = case.find("skipped")
        if told is not None:
            skipped[_reason(told)] += 1
        failed += case.find("failure") is not None or case.find("error") is not None
    return len(cases) - failed - skipped.total(), failed, skipped


def _reason(told: xml.etree.ElementTree.Element) -> str:
    """Return why a test was skipped; of a whole file that is the last word of a tuple's text."""
    message = told.get("message", "")
    if message == "collection skipped":
        message = (told.text or message).rpartition("Skipped: ")[2].rstrip("')\"")
    return message.removeprefix("NOT TESTED: ")


def summary(outcomes: Iterable[Outcome]) -> str:
    """Return the outcomes as text, a line for each file, and what is wrong with it."""
    lines = []
    for each in outcomes:
        word = each.ended or ("passed" if each.good else "FAILED")
        lines.append(
            f"{each.file:28} {each.passed:4d} passed {each.failed:3d} failed {each.skipped.total():3d} skipped"
            f" {each.took_s:6.0f} s  {word}  {each.versions}"
        )
        lines += [f"{'':28} {count:4d} x {reason}" for reason, count in sorted(each.skipped.items())]
    return "\n".join(lines)


def page(outcomes: Sequence[Outcome], machine: str, took_s: float) -> str:
    """Return the page of the documentation that keeps a run."""
    rows = "\n".join(
        f"| `tests/integrations/{each.file}.py` | {each.versions} | {each.passed} | {each.took_s:.0f} "
        f"| {'' if each.good else each.ended or f'{each.failed} failed'} |"
        for each in outcomes
    )
    skipped = sum((each.skipped for each in outcomes), Counter[str]())
    left_out = "\n".join(f"* {count}: {reason}" for reason, count in sorted(skipped.items())) or "None."
    passed = sum(each.passed for each in outcomes)
    return f"""\
# What was run with other libraries

`make test-integrations` makes virtual environments below `.venv` (several GB: torch, Flower, Ray and more; NVFlare and
S3 have their own), runs these files of tests, {AT_ONCE} at a time, and writes this page. A file is ended after
{FILE_LIMIT_S / 60:.0f} minutes, and none begins when {ALL_LIMIT_S / 60:.0f} are over. `ARGS="-k NAME"` is handed to
pytest; then this page stays as it is. What needs no such library is in `make test`.

Last run: {machine}; {passed} tests passed in {took_s / 60:.0f} minutes.

| tests | with | passed | s | |
|---|---|---|---|---|
{rows}

Skipped:

{left_out}

Some figures of it are told where they matter: [Flower](flower.md#what-it-gains), [NVFlare](nvflare.md#what-it-gains).
"""


class Running:
    """The processes that run now."""

    def __init__(self) -> None:
        self.ended = False
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()

    @contextmanager
    def noted(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Have `process` among them."""
        with self._lock:
            self._processes.add(process)
            if self.ended:
                process.send_signal(signal.SIGINT)
        try:
            yield
        finally:
            with self._lock:
                self._processes.remove(process)

    def end(self) -> None:
        """Interrupt them, and each that begins from now on."""
        with self._lock:
            self.ended = True
            for process in self._processes:
                process.send_signal(signal.SIGINT)


class Runs:
    """The runs of all files, `AT_ONCE` at a time; `outcomes` has one for each file, whatever becomes of it."""

    def __init__(self, environments: Path, arguments: Sequence[str]) -> None:
        files = sorted(path.stem for path in FOLDER.glob("test_*.py"))
        self.outcomes = {file: not_run(file, "NOT RUN: the run was ended") for file in files}
        self._environments = environments
        self._arguments = arguments
        self._left = sorted(files, key=lambda file: SLOW.index(file) if file in SLOW else len(SLOW))
        self._lock = threading.Lock()
        self._ends_s = time.monotonic() + ALL_LIMIT_S
        self._running = Running()

    def run(self) -> None:
        """Run them; ^C ends those that run, and no other begins."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            lanes = [pool.submit(self._lane) for _ in range(AT_ONCE)]
            try:
                for lane in lanes:
                    lane.result()
            except KeyboardInterrupt:
                self._running.end()

    def _lane(self) -> None:
        """Run one file after the other until none is left."""
        while True:
            with self._lock:
                if self._running.ended or not self._left:
                    return
                file = self._left.pop(0)
                self.outcomes[file] = not_run(file, "ENDED: the run was")
            if time.monotonic() > self._ends_s:
                self.outcomes[file] = not_run(file, "NOT RUN: the time is over")
                continue
            print(f"== {file} begins", flush=True)
            python = self._environments / ENVIRONMENT.get(file, "integrations") / "bin/python"
            outcome, said = run(python, file, self._arguments, self._running)
            self.outcomes[file] = outcome
            with self._lock:
                print(f"== {file}\n{said}", flush=True)


def not_run(file: str, why: str) -> Outcome:
    """Return the outcome of a file that was not run to its end."""
    return Outcome(file, 0, 0, Counter(), 0.0, "", why)


def main(environments: Path, arguments: Sequence[str]) -> int:
    """Run all files; return 0 when all passed.  A run that ^C ends says which were not reached."""
    began_s, runs = time.monotonic(), Runs(environments, arguments)
    runs.run()
    outcomes = list(runs.outcomes.values())
    print(f"== the integrations\n{summary(outcomes)}", flush=True)
    if not arguments:
        PAGE.write_text(page(outcomes, machine(), time.monotonic() - began_s))
        print(f"{PAGE.relative_to(ROOT)} is written")
    return not all(each.good for each in outcomes)


def run(python: Path, file: str, arguments: Sequence[str], running: Running) -> tuple[Outcome, str]:
    """Run a file in an environment; return what it said, too."""
    mark, began_s = f"integrations-{uuid.uuid4().hex}", time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [python, "-m", "pytest", "-q", FOLDER / f"{file}.py", f"--junitxml={report}", *arguments]
        env = os.environ | {leaks.MARK: mark, SLOW_TOO: "1"}
        log = Path(folder) / "log"
        with (
            log.open("wb") as sink,  # a session of its own: ^C is passed on to it once
            subprocess.Popen(command, cwd=ROOT, env=env, stdout=sink, stderr=sink, start_new_session=True) as process,
            running.noted(process),
        ):
            ended = _waited(process)
        ended = "ENDED: the run was" if running.ended else ended
        said = log.read_text(errors="replace")
        for pid in leaks.marked_processes(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        passed, failed, skipped = counted(report)
    if ended and passed:
        passed -= 1  # the one that was interrupted: the report has it without a fault
    if not ended and process.returncode not in (0, 1, 5):
        ended = f"FAILED: exit code {process.returncode}"
    if not ended and not passed + failed + skipped.total() and not arguments:
        ended = "FAILED: no test was run"
    failed = failed or int(process.returncode == 1)  # what was left behind, or skipped without need
    took_s = time.monotonic() - began_s
    return Outcome(file, passed, failed, skipped, took_s, versions(python, file), ended), said


def _waited(process: subprocess.Popen[bytes]) -> str:
    """Wait for the end of pytest; return what it was ended for, or nothing."""
    try:
        process.wait(FILE_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
        return f"ENDED after {FILE_LIMIT_S:.0f} s"
    return ""


def versions(python: Path, file: str) -> str:
    """Return the names and versions of what a file is there for, as the page tells them."""
    told = subprocess.run(
        [python, "-c", VERSIONS, *LIBRARIES[file]], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for program in PROGRAMS.get(file, ()):
        try:
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            told.append(f"no {program}")
            continue
        word = next((word for word in (said.stdout + said.stderr).split() if word[0].isdigit()), "")
        told.append(f"{program} {word}")
    return ", ".join(told)


def machine() -> str:
    """Return when this is, of which source, and on what."""
    source = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    cores = len(os.sched_getaffinity(0))
    python = ".".join(map(str, sys.version_info[:3]))
    today = datetime.datetime.now(datetime.UTC).date()
    linux = os.uname().release.partition("-")[0]
    commit = source.stdout.strip() or "unknown"
    return f"{today}, source {commit}, Python {python}, {cores} cores, Linux {linux}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
