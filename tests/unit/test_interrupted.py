"""^C while a model is copied or sent leaves no half of it anywhere, and one line with exit code 130."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from lifl_cli import main, output, up
from lifl_cli.fetch_model import _copy

from lifl.confine import signals
from lifl.core.errors import Refused
from lifl.node import daemon, uploads
from lifl.node.uploads import ModelUploads

MODEL = b"m" * 4096
DIGEST = hashlib.sha256(MODEL).hexdigest()


def test_a_copy_that_is_interrupted_leaves_the_file_before_and_no_part(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"before")

    def pieces() -> Generator[bytes]:
        yield MODEL
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _copy(pieces(), target, {"path": "/f/1"}, None)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


@pytest.mark.usefixtures("usual_signal")
@pytest.mark.parametrize("asks_json", [False, True])
def test_any_command_that_is_interrupted_says_so_in_one_line(
    asks_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lifl_cli.jobs.daemon_at", interrupted)
    monkeypatch.setattr(main, "set_up_process", lambda: True)
    monkeypatch.setattr(output, "guard", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["lifl", "jobs", *(["--json"] if asks_json else [])])
    with pytest.raises(SystemExit) as ended:
        main.main()
    said = capsys.readouterr()
    assert ended.value.code == 130
    assert said.err == f"{main.INTERRUPTED}\n"
    assert ('"code": "interrupted"' in said.out) == asks_json


@pytest.fixture
def usual_signal(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """As Python begins; what `main` does about ^C is undone."""
    monkeypatch.setattr(main, "_came", False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    alarm = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, alarm)
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_signal")
def test_what_an_import_makes_of_an_interruption_is_no_fault_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def importing(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numpy._core.umath failed to import") from None

    monkeypatch.setattr("lifl_cli.jobs.daemon_at", importing)
    monkeypatch.setattr(main, "set_up_process", lambda: True)
    monkeypatch.setattr(output, "guard", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["lifl", "jobs"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, f"{main.INTERRUPTED}\n")


@pytest.mark.usefixtures("usual_signal")
@pytest.mark.parametrize("twice", [False, True])
def test_an_import_is_not_interrupted_unless_it_is_twice(
    twice: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = 2 if twice else 1
    (tmp_path / "interrupted_here.py").write_text(
        f"import signal\nfor _ in range({times}): signal.raise_signal(signal.SIGINT)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    whole = []

    def importing(*_: object) -> None:
        import interrupted_here

        whole.append(interrupted_here.whole)
        time.sleep(3600)  # ends by the interruption

    monkeypatch.setattr("lifl_cli.jobs.daemon_at", importing)
    monkeypatch.setattr(main, "set_up_process", lambda: True)
    monkeypatch.setattr(output, "guard", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["lifl", "jobs"])
    monkeypatch.delitem(sys.modules, "interrupted_here", raising=False)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, f"{main.INTERRUPTED}\n")
    assert whole == ([] if twice else [True])


def test_what_is_interrupted_before_it_has_begun_shows_no_traceback() -> None:
    code = "import sys\n"
    code += "class Interrupts:\n    def find_spec(self, name, *_):\n"
    code += "        if name == 'click':\n            raise KeyboardInterrupt\n"
    code += "sys.meta_path.insert(0, Interrupts())\nimport lifl_cli.main\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted: nothing was begun\n")


def uploads_in(folder: Path) -> ModelUploads:
    return ModelUploads(folder, 1 << 20, lambda: ())


def test_a_part_that_nobody_goes_on_with_is_removed_and_one_that_goes_on_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def life() -> None:
        made = uploads_in(tmp_path)
        made.put(DIGEST, 0, MODEL[:1000], len(MODEL))
        made.put(DIGEST, 1000, MODEL[1000:2000], len(MODEL))
        assert len(list(tmp_path.glob(".uploaded-*"))) == 1
        assert made.put(DIGEST, 2000, MODEL[2000:], len(MODEL))["path"]
        assert Path(made.put(DIGEST, 0, b"", len(MODEL))["path"]).read_bytes() == MODEL
        other = hashlib.sha256(b"other").hexdigest()
        monkeypatch.setattr(uploads, "PART_IDLE_S", 0.0)
        made.put(other, 0, b"oth", 5)
        while list(tmp_path.glob(".uploaded-*")):
            await asyncio.sleep(0)
        with pytest.raises(Refused, match="send it again"):
            made.put(other, 3, b"er", 5)
        assert [path.name for path in tmp_path.iterdir()] == [f"uploaded-{DIGEST}.safetensors"]

    asyncio.run(asyncio.wait_for(life(), 60))


def test_the_next_life_of_a_node_removes_what_an_earlier_one_was_sent_of(tmp_path: Path) -> None:
    async def life() -> None:
        uploads_in(tmp_path).put(DIGEST, 0, MODEL[:1000], len(MODEL))

    asyncio.run(life())
    assert list(tmp_path.iterdir())
    uploads_in(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", signals.ENDS)
@pytest.mark.parametrize("becomes", ["itself", "another error", "nothing"])
def test_up_that_is_told_to_end_before_lifld_heeds_signals_ends_as_a_node_does(
    number: signal.Signals, becomes: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the foreground: a second one changes nothing, and imports may swallow the first or make an error of it."""

    def told(*_: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            signal.raise_signal(number)
            if becomes == "itself":
                raise
            if becomes == "another error":
                raise ImportError from None
        asyncio.run(daemon._run(None, tmp_path, None, None, None, None))  # type: ignore[arg-type]

    monkeypatch.setattr(up, "_run", told)
    found = CliRunner().invoke(up.up, ["--state", str(tmp_path)])
    assert (found.exit_code, found.stdout, found.stderr) == (0, "", "lifld was ended while it was starting\n")


def test_what_waits_for_another_machine_is_interrupted_and_signals_mean_what_they_did() -> None:
    before = [signal.getsignal(number) for number in signals.ENDS]
    with pytest.raises(KeyboardInterrupt), signals.heeded_at_once():
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in signals.ENDS] == before
    assert signals.came_early()
    signals._early.clear()


@pytest.fixture
def usual_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in signals.ENDS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._early.clear()
