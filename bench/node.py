"""The benchmark of one node (`make bench-node`): the real parts, side by side in one run, and the targets.

    bench/node.py [--quick] [--only handoff,ingest,...] [--connections K]

Prints each group's table as it is done, then the table of targets; a target that is missed is shown as missed, and is
no error.  A full run writes bench/results/node.json and node.md, one of `tls,handshakes` (`make bench-tls`) tls.json
and tls.md.  `--quick` runs every cell once or twice with small sizes, to see that all of them run; it writes nothing.
Exit code 1 when a cell could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable

from measure import HELPER_ENVIRONMENT, ROOT, Group, Target, machine, targets_markdown

# NumPy's BLAS makes its threads when it is loaded.
os.environ.update(HELPER_ENVIRONMENT)

import node_connections
import node_fold
import node_handoff
import node_handshakes
import node_ingest
import node_lent
import node_model
import node_rest
import node_small
import node_start
import node_tensors
import node_tls
import placement

from lifl.core.limits import STREAMS_MAX

GROUPS: dict[str, Callable[..., Group]] = {
    "handoff": node_handoff.run,
    "ingest": node_ingest.run,
    "model": node_model.run,
    "tls": node_tls.run,
    "handshakes": node_handshakes.run,
    "fold": node_fold.run,
    "start": node_start.run,
    "placement": placement.run,
    "rest": node_rest.run,
    "connections": node_connections.run,
    "tensors": node_tensors.run,
    "small": node_small.run,
    "lent": node_lent.run,
}
REPORTS = {"node": tuple(GROUPS), "tls": ("tls", "handshakes")}
"""By the name of the report: the groups that it is of, when they are run together."""
RESULTS = ROOT / "bench" / "results"


def main() -> int:
    """Run the groups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions; writes nothing")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"some of {','.join(GROUPS)}")
    also = "updates over TLS also over so many connections each; writes nothing"
    parser.add_argument("--connections", type=int, choices=range(1, STREAMS_MAX + 1), default=1, help=also)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleared up
    names = options.only.split(",")
    if not set(names) <= set(GROUPS):
        parser.error(f"--only takes names of {', '.join(GROUPS)}")
    about = {**machine(), "command": " ".join(["bench/node.py", *sys.argv[1:]])}
    print(heading(about), flush=True)
    begun_s = time.monotonic()
    groups: list[Group] = []
    for name in names:
        more = {"connections": options.connections} if name == "tls" else {}
        groups.append(GROUPS[name](options.quick, **more))
        print(groups[-1].markdown(), flush=True)
    about["load after"] = " ".join(f"{load:.2f}" for load in os.getloadavg())
    targets = [target for group in groups for target in group.targets]
    print("Small sizes: the targets are not judged.\n" if options.quick else targets_markdown(targets), flush=True)
    print(f"took {time.monotonic() - begun_s:.0f} s")
    for report, parts in REPORTS.items():
        if not options.quick and options.connections == 1 and set(names) == set(parts):
            write(report, about, groups, targets)
    return 0


def heading(about: dict[str, str]) -> str:
    """Return title and circumstances."""
    return "# Benchmark of one node\n\n" + "".join(f"- {name}: {text}\n" for name, text in about.items())


def write(report: str, about: dict[str, str], groups: list[Group], targets: list[Target]) -> None:
    """Write the report, for people and for programs."""
    RESULTS.mkdir(exist_ok=True)
    parts = [heading(about), *[group.markdown() for group in groups], targets_markdown(targets)]
    (RESULTS / f"{report}.md").write_text("\n".join(parts))
    told = {
        "about": about,
        "groups": {group.name: group.builtins() for group in groups},
        "targets": [
            {"name": t.name, "unit": t.unit, "limit": t.limit, "at_least": t.at_least, "measured": t.measured}
            | {"met": t.met}
            for t in targets
        ],
    }
    (RESULTS / f"{report}.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
