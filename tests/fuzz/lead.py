"""Lets atheris lead one target of `guided.py` by coverage: python tests/fuzz/lead.py TARGET [-max_total_time=60]."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lifl", "lifl_cli", "guided"]):
    import guided


def main() -> None:
    """Let it lead, as long as its flags say; it ends the process."""
    name, *flags = sys.argv[1:]
    target = guided.TARGETS[name]
    corpus = Path(tempfile.mkdtemp(prefix="corpus-", dir="."))
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], str(corpus), "-rss_limit_mb=2048", *flags], target.parse)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
