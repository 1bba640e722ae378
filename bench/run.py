"""The whole comparison, in one run (`make bench`, `make bench-quick`).

    bench/run.py [--quick] [--only rounds,...] [--seed N] [--out FOLDER]

Each section measures within its share of the time, and what those before it have left of theirs, and says which cells
it left out and why.  The report is written to bench/results (REPORT.md, report.json, pictures), in the quick run to a
temporary folder.  The quick run judges no times: it exits with 1 when a system could not run, when an aggregate differs
from the float64 reference by more than its system's tolerance, or when the report was not written.  The full run does
so only when nothing could be measured.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from measure import HELPER_ENVIRONMENT, ROOT, fresh_memory, machine

# NumPy's BLAS makes its threads when it is loaded.
os.environ.update(HELPER_ENVIRONMENT)

import report
from systems.interface import Context, Outcome, Section, System

SECTIONS = (
    "section_handoff",
    "section_node",
    "section_rounds",
    "section_training",
    "section_idle",
    "section_scale",
)
ELASTIC = ("section_training", "section_rounds")
"""Have more cells than there is time for: they are run when the others are done, in this order, and may have all that
is left."""
SYSTEMS = (
    ("systems.lifl", "Lifl"),
    ("systems.serverful", "Serverful"),
    ("systems.serverless", "Serverless"),
    ("systems.flower", "Flower"),
    ("systems.nvflare", "NVFlare"),
)
RESULTS = ROOT / "bench" / "results"
SEED = 20240513
CANNOT = "cannot be installed"
"""A system's `missing` says so when its parts are not to be had on this machine."""


def main() -> int:
    """Run the sections and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; report in a temporary folder")
    parser.add_argument("--only", default="", help=f"some of {', '.join(SECTIONS)} (without section_)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, help="where the report goes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleared up
    wanted = {f"section_{name}" for name in options.only.split(",") if name} or set(SECTIONS)
    if not wanted <= set(SECTIONS):
        parser.error(f"--only takes names of {', '.join(SECTIONS)}")
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lb-")))
        out = options.out or (folder / "report" if options.quick or options.only else RESULTS)
        about = {**machine(), "command": " ".join(["bench/run.py", *sys.argv[1:]]), "seed": str(options.seed)}
        systems, absent = _systems()
        for system in systems:
            about[system.name] = ", ".join(f"{part} {text}" for part, text in system.versions().items())
        print(report.heading(about), flush=True)
        for text in absent:
            print(f"NOT RUN  {text}", flush=True)
        begun_s = time.monotonic()
        about["fresh memory"] = fresh_memory()
        found = run([name for name in SECTIONS if name in wanted], systems, options.quick, options.seed, folder)
        about["took"] = f"{time.monotonic() - begun_s:.0f} s"
        about["fresh memory"] += f", at the end {fresh_memory()}"
        about["load after"] = " ".join(f"{load:.2f}" for load in os.getloadavg())
        path = report.write(out, about, found, absent, judged=not options.quick)
        where = "the report was written and is deleted" if path.is_relative_to(folder) else f"report: {path}"
        print(f"took {about['took']}; {where}")
        failures = [text for _, outcome in found for text in outcome.failures]
        if options.quick:
            # What make tried to install and could not is no fault of the harness.
            failures += [f"a system is missing: {text}" for text in absent if CANNOT not in text]
        for text in failures:
            print(f"FAILED  {text}")
    return 1 if failures and (options.quick or len(failures) == len(found)) else 0


def _systems() -> tuple[list[System], list[str]]:
    """Return the systems that can run here, and why the others cannot."""
    systems: list[System] = []
    absent = []
    for module, name in SYSTEMS:
        system: System = getattr(importlib.import_module(module), name)()
        why = system.missing()
        if why:
            absent.append(f"{system.name}: {why}")
        else:
            systems.append(system)
    return systems, absent


def run(
    names: Sequence[str], systems: Sequence[System], quick: bool, seed: int, folder: Path
) -> list[tuple[Section, Outcome]]:
    """Run the sections, printing each one's tables; a section that breaks down is a failure of its own."""
    found: list[tuple[Section, Outcome]] = []
    costs: dict[str, float] = {}
    end_s = time.monotonic()
    for name in [n for n in names if n not in ELASTIC] + [n for n in ELASTIC if n in names]:
        section: Section = importlib.import_module(name)  # type: ignore[assignment]
        # A section may have what those before it did not take, and pays for what they took too much.
        end_s += section.QUICK_BUDGET_S if quick else section.BUDGET_S
        work = folder / name
        work.mkdir()
        context = Context(quick, seed, work, systems, lambda end_s=end_s: end_s - time.monotonic(), costs)
        begun_s = time.monotonic()
        try:
            outcome = section.run(context)
        except Exception as error:  # noqa: BLE001 - the other sections are worth having
            traceback.print_exc()
            outcome = Outcome(failures=[f"{section.NAME}: {type(error).__name__}: {error}"])
        shutil.rmtree(work)
        found.append((section, outcome))
        print(report.section_text(section, outcome, pictures=False), flush=True)
        print(f"({section.NAME} took {time.monotonic() - begun_s:.0f} s)\n", flush=True)
    return sorted(found, key=lambda each: names.index(f"section_{each[0].NAME}"))


if __name__ == "__main__":
    sys.exit(main())
