"""A failing life says how to see it again; a recording is told event by event, and where a replay differs."""

from __future__ import annotations

import re
from pathlib import Path

import lives
import pytest
import replay
from scenes import job, scene

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.agent.job_replica import JobReplica
from lifl.core.event_log import Recording
from lifl.core.protocol import gateway as gm


def recorded(tmp_path: Path) -> tuple[Recording, Path]:
    cluster = scene(job("a"))
    cluster.run(0)
    path = tmp_path / "host1.recording"
    recording = cluster.engine.recording()
    path.write_bytes(recording.pack())
    return recording, path


def test_a_recording_is_told_event_by_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording, path = recorded(tmp_path)
    assert replay.tell_recording(path) == 0
    told = capsys.readouterr().out.splitlines()
    assert "<- JobSubmitted" in told[0]
    assert sum("  <- " in line for line in told) == len(recording.entries)
    assert any("-> SaveRound a 1 1 committed" in line for line in told)
    assert told[-1] == f"{len(recording.entries)} events led to the same effects"


def test_the_first_event_that_leads_to_other_effects_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording, path = recorded(tmp_path)
    number = next(n for n, entry in enumerate(recording.entries) if fx.SaveJob("a", "finished", "") in entry.shapes)
    entry = recording.entries[number]
    place = entry.shapes.index(fx.SaveJob("a", "finished", ""))
    shapes = (*entry.shapes[:place], fx.SaveJob("a", "failed", ""), *entry.shapes[place + 1 :])
    recording.entries[number] = entry._replace(shapes=shapes)
    path.write_bytes(recording.pack())
    assert replay.tell_recording(path) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[-2].split(maxsplit=1) == ["->", "SaveJob(job=a, status=failed, reason=)"]
    where = f"event {number + 1} of {len(recording.entries)}, effect {place + 1}"
    assert told[-1].rstrip() == f"{where}: replayed to SaveJob(job=a, status=finished, reason=)"


def test_what_is_no_recording_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none"
    path.write_bytes(b"no recording")
    assert replay.tell_recording(path) == 2
    assert str(path) in capsys.readouterr().out


def test_a_failing_life_names_its_seed_and_recordings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the engine raised, the event that it raised at is the recording's last."""

    def broken(self: JobReplica) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(JobReplica, "close", broken)
    monkeypatch.setattr(lives.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(AssertionError, match=r"seed 3 on 1 hosts: .*planted.*make sim SEED=3 HOSTS=1") as failed:
        lives.live(3, 1)
    path = Path(re.findall(r"recordings: (\S+)", str(failed.value))[0])
    entries = Recording.unpack(path.read_bytes()).entries
    assert isinstance(entries[-1].event, ev.RowsWritten | gm.ClientLeft | ev.FromWorker)
    assert replay.tell_recording(path) == 0


def test_a_life_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(replay.Engine, "handle", replay.Engine.handle)
        patch.setattr(replay.Cluster, "_effect", replay.Cluster._effect)
        for part, names in replay.FAULTS.items():
            for name in names:
                patch.setattr(part, name, getattr(part, name))
        assert replay.tell_life(3, 1) == 0
    told = capsys.readouterr().out.splitlines()
    assert " <- JobSubmitted(" in told[0]
    assert any("  !! quiet" in line for line in told)
    assert told[-1].startswith("seed 3 on 1 hosts: j1 ")
