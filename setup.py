"""The one thing that setup.cfg cannot say: the compiled parts, which the installation may do without."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "lifl.rules._fold",
            ["src/lifl/rules/fold.c", "src/lifl/rules/fold_integers.c"],
            depends=["src/lifl/rules/fold_target.h", "src/lifl/rules/fold_type.h"],
            extra_compile_args=["-O3", "-fno-trapping-math"],
            optional=True,
        ),
        Extension("lifl.shm._ingest_check", ["src/lifl/shm/ingest_check.c"], extra_compile_args=["-O3"], optional=True),
        Extension("lifl.tls._records", ["src/lifl/tls/records.c"], extra_compile_args=["-O3"], optional=True),
    ]
)
