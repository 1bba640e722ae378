"""What setup.cfg cannot say: the compiled parts, which the installation may do without, and what else a wheel has.

The compiled parts include nothing of Python's (ctypes loads them), so one file is good for each CPython.
"""

from pathlib import Path

from setuptools import Extension, setup

ABI = "cp311"
"""From 3.11 on."""
FLAGS = ["-O3", "-g0"]
SHARED = ("configs", "examples")
"""Folders that an installation has in share/lifl."""


def shared_files() -> list[tuple[str, list[str]]]:
    """Return each folder below `SHARED`, as an installation has it, with its files."""
    found: dict[str, list[str]] = {}
    for folder in SHARED:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                found.setdefault(f"share/lifl/{path.parent}", []).append(str(path))
    return list(found.items())


setup(
    data_files=shared_files(),
    options={"bdist_wheel": {"py_limited_api": ABI}},
    ext_modules=[
        Extension(
            "lifl.rules._fold",
            ["src/lifl/rules/fold.c", "src/lifl/rules/fold_integers.c"],
            depends=["src/lifl/rules/fold_target.h", "src/lifl/rules/fold_type.h", "src/lifl/rules/fold_bins.h"],
            extra_compile_args=[*FLAGS, "-fno-trapping-math"],
            optional=True,
            py_limited_api=True,
        ),
        *(
            Extension(name, [source], extra_compile_args=FLAGS, optional=True, py_limited_api=True)
            for name, source in (
                ("lifl.shm._ingest_check", "src/lifl/shm/ingest_check.c"),
                ("lifl.tls._records", "src/lifl/tls/records.c"),
            )
        ),
    ],
)
