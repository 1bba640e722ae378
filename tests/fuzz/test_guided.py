"""Every parser of what comes from outside: its seeds, damaged at random; and, for longer, as coverage leads atheris.

LIFL_FUZZ_S says for how many seconds in all; without it one is, for a second.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fleet import seeded
from guided import TARGETS

DAMAGED = 300
FUZZ_S = float(os.environ.get("LIFL_FUZZ_S", "0"))
START_S = 60.0


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_raises_nothing_but_what_it_says(name: str) -> None:
    rng, target = seeded(name), TARGETS[name]
    for seed in target.seeds():
        target.parse(seed)
        for _ in range(DAMAGED):
            data = bytearray(seed)
            for _ in range(rng.randint(1, 4)):
                at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
                data[at:end] = rng.choice((b"", rng.randbytes(1), rng.randbytes(5), data[at:end] * 2))
            target.parse(bytes(data))


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris is not installed: not guided by coverage")
@pytest.mark.parametrize("name", TARGETS if FUZZ_S else ["frames"])
def test_a_parser_is_led_through_by_coverage_at_random(name: str, tmp_path: Path) -> None:
    """Without LIFL_FUZZ_S it is seen that it can begin."""
    seconds = max(1, round(FUZZ_S / len(TARGETS)))
    flags = [f"-max_total_time={seconds}", f"-artifact_prefix={tmp_path}/", "-timeout=20", "-print_final_stats=1"]
    if os.environ.get("LIFL_SEED"):
        flags.append(f"-seed={os.environ['LIFL_SEED']}")
    script = Path(__file__).with_name("lead.py")
    done = subprocess.run(
        (sys.executable, script, name, *flags),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + START_S,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    left = {path.name: path.read_bytes()[:500] for path in tmp_path.iterdir() if path.is_file()}
    assert done.returncode == 0 and not left, f"{left}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    print("\n".join(line for line in done.stderr.splitlines() if "stat::" in line or "cov:" in line)[-600:])
