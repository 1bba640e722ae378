"""`lifl backup` and `lifl restore`: all that is durable comes back as it was, and nothing else gets in."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lifl.core import limits
from lifl.core.config.job import parse_job
from lifl.core.errors import Refused, ResourceFault
from lifl.core.formats import DATABASE_FORMAT
from lifl.node import folders
from lifl.node.backup import archive, write
from lifl.node.backup.restore import restore_backup
from lifl.node.backup.write import write_backup
from lifl.node.locks import StateLocks
from lifl.node.state_format import take_format
from lifl.node.store import NodeStore
from lifl.tls import folder as identity
from lifl.tls.enrolment import new_key

MODELS = {
    "round-00000.safetensors": b"zero",
    "round-00001.safetensors": b"one" * 9_999,
    "round-00001.state.safetensors": b"",
}


def certificate_of(key: bytes) -> bytes:
    """A certificate of the key by itself."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    private: Any = load_pem_private_key(key, None)
    name, now = x509.Name([]), datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    made = x509.CertificateBuilder(name, name, private.public_key(), 1, now, now)
    return made.sign(private, hashes.SHA256()).public_bytes(Encoding.PEM)


def add_job(state: Path, name: str, folder: Path) -> int:
    selection = {"clients_per_round": 1}
    config = parse_job({"job": {"name": name, "rounds": 3}, "model": {"path": "/m"}, "selection": selection})
    folder.mkdir(parents=True)
    with closing(NodeStore(state / "lifl.db")) as store:
        number = store.add_job(config, (), (), str(folder))
        store.save_job(name, "running", "")
        store.save_round(name, 1, 1, "committed", {"members": ["a"]})
        folders.claim(folder, store.node_id(), number, name)
    for file, content in MODELS.items():
        (folder / file).write_bytes(content)
    (folder / ".round-00002.safetensors.tmp").write_bytes(b"half a model")
    return number


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A node's folder with all kinds of files: two jobs in it, one elsewhere."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    take_format(folder)
    add_job(folder, "one", folder / "jobs" / "one")
    add_job(folder, "2", folder / "jobs" / "2")  # not its number
    add_job(folder, "away", tmp_path / "away")
    key = new_key().key
    identity.save(identity.node_folder(folder), ca=b"the root", certificate=certificate_of(key), key=key)
    (folder / "identity" / "cert.pem").chmod(0o644)
    (folder / "authority.pem").write_bytes(b"the authority")
    (folder / "authority.pem").chmod(0o600)
    (folder / "audit").mkdir(mode=0o700)
    (folder / "audit" / "audit-1.jsonl").write_bytes(b"{}\n")
    (folder / "audit" / "audit-1.jsonl").chmod(0o600)
    for name in ("lifld.log", "lifld.lock", "updates"):  # of a life, not of the node
        (folder / name).write_bytes(b"x")
    return folder


def kept(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of each file that a backup keeps, but of the database."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("lifl") and path.name != "updates" and path.suffix != ".tmp":
            found[str(path.relative_to(folder))] = (path.stat().st_mode & 0o777, path.read_bytes())
    return found


def rows(folder: Path) -> list[tuple[Any, ...]]:
    tables = ("node", "seed", "written", "jobs", "rounds", "plans")
    with closing(sqlite3.connect(folder / "lifl.db")) as db:
        return [row for table in tables for row in db.execute(f"SELECT * FROM {table}")]


def test_all_that_is_durable_comes_back_with_its_modes(state: Path, tmp_path: Path) -> None:
    made = write_backup(state, tmp_path / "b.tar")
    assert (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o600
    assert made.left_out == (str(tmp_path / "away"),)
    there = tmp_path / "new" / "place"
    assert restore_backup(tmp_path / "b.tar", there) == made
    assert kept(there) == kept(state) and len(kept(state)) == 6 + 2 * (len(MODELS) + 1)
    modes = {name: (there / name).stat().st_mode & 0o777 for name in ("", "identity", "audit", "jobs", "lifl.db")}
    assert modes == {"": 0o700, "identity": 0o700, "audit": 0o700, "jobs": 0o700, "lifl.db": 0o600}
    assert repr(rows(there)) == repr(rows(state)).replace(f"{state}/jobs", f"{there}/jobs")
    assert sorted(path.name for path in there.iterdir()) == [
        *("audit", "authority.pem", "format.json", "identity", "jobs", "lifl.db")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["away", "b.tar", "new", "state"], "nothing beside"
    with tarfile.open(tmp_path / "b.tar") as plain:
        assert plain.getnames()[-1] == archive.LIST


def test_a_backup_is_of_one_moment_while_rows_are_written(state: Path, tmp_path: Path) -> None:
    """Each round and its plan counter are one transaction: a copy has both or none."""
    with closing(sqlite3.connect(state / "lifl.db")) as db, db:
        db.execute("CREATE TABLE pairs (a INTEGER, b INTEGER)")
        db.execute("INSERT INTO pairs VALUES (0, 0)")
    stop, written = threading.Event(), threading.Event()

    def writer() -> None:
        with closing(sqlite3.connect(state / "lifl.db", isolation_level=None, timeout=60)) as db:
            count = 0
            while not stop.is_set():
                count += 1
                db.execute("BEGIN IMMEDIATE")
                db.execute("UPDATE pairs SET a = ?", (count,))
                db.execute("UPDATE pairs SET b = ?", (count,))
                db.execute("COMMIT")
                written.set()

    thread = threading.Thread(target=writer)
    thread.start()
    try:
        found = []
        for number in range(5):
            written.clear()
            assert written.wait(60)
            write_backup(state, tmp_path / f"b{number}.tar")
            restore_backup(tmp_path / f"b{number}.tar", tmp_path / f"s{number}")
            with closing(sqlite3.connect(tmp_path / f"s{number}" / "lifl.db")) as db:
                found += db.execute("SELECT a, b FROM pairs").fetchall()
    finally:
        stop.set()
        thread.join()
    assert all(a == b for a, b in found) and len({*found}) == 5


def test_an_earlier_releases_folder_is_backed_up_as_it_is(tmp_path: Path) -> None:
    """Before an upgrade."""
    shutil.copytree(Path(__file__).parents[1] / "data" / "state-0.1.0", tmp_path / "state")
    write_backup(tmp_path / "state", tmp_path / "b.tar")
    restore_backup(tmp_path / "b.tar", tmp_path / "there")
    with closing(sqlite3.connect(tmp_path / "there" / "lifl.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        assert db.execute("SELECT count(*) FROM rounds WHERE status = 'committed'").fetchone() > (2,)


def test_a_file_that_is_there_is_not_written_over(state: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.tar"
    target.write_text("dear")
    with pytest.raises(Refused, match="there already"):
        write_backup(state, target)
    target.unlink()
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(Refused, match="there already"):
        write_backup(state, target)
    assert not (tmp_path / "nowhere").exists()


def test_what_cannot_be_written_leaves_nothing(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceFault, match="No such file"):
        write_backup(state, tmp_path / "no" / "b.tar")
    with pytest.raises(ResourceFault, match="no node has kept anything"):
        write_backup(tmp_path / "no", tmp_path / "b.tar")

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.Writer, "end", full)
    with pytest.raises(ResourceFault, match="No space left"):
        write_backup(state, tmp_path / "b.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["away", "state"]


def test_key_and_certificate_are_taken_as_a_pair(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal puts one after the other in place."""
    new, place = new_key().key, state / "identity"
    identity.save(place, key=new)

    def renewed(_s: float) -> None:
        identity.save(place, certificate=certificate_of(new))

    monkeypatch.setattr("time.sleep", renewed)
    write_backup(state, tmp_path / "b.tar")
    restore_backup(tmp_path / "b.tar", tmp_path / "there")
    assert (tmp_path / "there/identity/key.pem").read_bytes() == new
    assert (tmp_path / "there/identity/cert.pem").read_bytes() == (place / "cert.pem").read_bytes()
    identity.save(place, key=new_key().key)
    monkeypatch.setattr("time.sleep", lambda _s: None)
    with pytest.raises(ResourceFault, match="is not the key of"):
        write_backup(state, tmp_path / "b2.tar")


# ---- where it is restored to -----------------------------------------------------------------------------------------


def test_a_living_node_and_a_folder_with_anything_are_left_alone(state: Path, tmp_path: Path) -> None:
    write_backup(state, tmp_path / "b.tar")
    there = tmp_path / "there"
    there.mkdir(mode=0o700)
    with closing(StateLocks(there)), pytest.raises(ResourceFault, match="lifld"):
        restore_backup(tmp_path / "b.tar", there)
    assert sorted(path.name for path in there.iterdir()) == ["children.lock", "lifld.lock"]
    with pytest.raises(Refused, match="not empty"):
        restore_backup(tmp_path / "b.tar", there)
    with pytest.raises(Refused, match="not empty"):
        restore_backup(tmp_path / "b.tar", tmp_path / "b.tar")
    assert sorted(path.name for path in there.iterdir()) == ["children.lock", "lifld.lock"]
    (tmp_path / "empty").mkdir()
    restore_backup(tmp_path / "b.tar", tmp_path / "empty")
    assert kept(tmp_path / "empty") == kept(state)


def test_a_folder_that_fills_meanwhile_is_left_alone(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_backup(state, tmp_path / "b.tar")
    there = tmp_path / "there"
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        if target == there:
            there.mkdir()
            (there / "lifld.lock").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(Refused, match="was a node started there"):
        restore_backup(tmp_path / "b.tar", there)
    assert [path.name for path in there.iterdir()] == ["lifld.lock"]
    assert not list(tmp_path.glob(".*"))


def test_a_disk_without_room_is_said_before_anything_is_written(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_backup(state, tmp_path / "b.tar")
    size = (tmp_path / "b.tar").stat().st_size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=size - 1))
    with pytest.raises(ResourceFault, match="make room"):
        restore_backup(tmp_path / "b.tar", tmp_path / "there")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=size))
    restore_backup(tmp_path / "b.tar", tmp_path / "there")


# ---- archives that are not whole, or hostile -------------------------------------------------------------------------


def refused(data: bytes, tmp_path: Path) -> Refused:
    """How an archive of these bytes is refused; it leaves nothing."""
    (tmp_path / "bad.tar").write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refused) as found:
        restore_backup(tmp_path / "bad.tar", tmp_path / "there")
    assert str(tmp_path / "bad.tar") in found.value.text or "the database in the backup" in found.value.text
    assert sorted(tmp_path.rglob("*")) == before
    return found.value


@pytest.fixture
def whole(state: Path, tmp_path: Path) -> bytes:
    write_backup(state, tmp_path / "b.tar")
    return (tmp_path / "b.tar").read_bytes()


def test_a_torn_archive_is_refused_wherever_it_was_cut(whole: bytes, tmp_path: Path) -> None:
    places = {
        0,
        1,
        511,
        512,
        513,
        len(whole) // 3,
        len(whole) // 2,
        len(whole) - 1,
        len(whole) - 512,
        len(whole) - 1024,
    }
    for place in sorted(places):
        assert refused(whole[:place], tmp_path).code == "torn-backup", place
    assert refused(whole + b"\0", tmp_path).code == "bad-backup"
    assert refused(whole[: len(whole) // 2 // 512 * 512] + bytes(4096), tmp_path).code in ("torn-backup", "bad-backup")


def test_a_bit_that_changed_is_found_in_each_file(whole: bytes, tmp_path: Path) -> None:
    places = []
    with tarfile.open(fileobj=io.BytesIO(whole)) as plain:
        for member in plain:
            places += [member.offset_data] if member.size else []
            places += [member.offset_data + member.size] if member.size % 512 else []  # behind it
            places.append(member.offset)  # its name
    assert len(places) > 20
    for place in places:
        data = bytearray(whole)
        data[place] ^= 0x01
        assert refused(bytes(data), tmp_path).code in ("torn-backup", "bad-backup", "damaged-backup"), place


def members(data: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as plain:
        for member in plain:
            file = plain.extractfile(member)
            assert file is not None
            yield member, file.read()


def again(data: bytes, change: Callable[[str, bytes], bytes | None], more: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """The archive with changed contents (None: without that file), and a list that agrees with them."""
    out, listed = io.BytesIO(), []
    for info in more:
        out.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(info.size + -info.size % 512))
        listed.append((info.name, info.size, info.mode & 0o777, hashlib.sha256(bytes(info.size)).hexdigest()))
    for member, content in members(data):
        if member.name == archive.LIST:
            said = json.loads(content.splitlines()[0])
            changed = change(member.name, json.dumps(said | {"files": listed}).encode()) or b""
            new: bytes | None = changed + b"\n" + hashlib.sha256(changed).hexdigest().encode() + b"\n"
        else:
            new = change(member.name, content)
        if new is None:
            continue
        member.size = len(new)
        listed.append((member.name, len(new), member.mode, hashlib.sha256(new).hexdigest()))
        out.write(member.tobuf(tarfile.GNU_FORMAT) + new + bytes(-len(new) % 512))
    return out.getvalue() + bytes(1024)


def same(_name: str, content: bytes) -> bytes:
    return content


def test_an_archive_that_was_made_again_is_taken(whole: bytes, tmp_path: Path) -> None:
    """So that those below are refused for what is in them."""
    (tmp_path / "again.tar").write_bytes(again(whole, same))
    restore_backup(tmp_path / "again.tar", tmp_path / "there")


def info(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, link
    return made


HOSTILE = {
    "a path out": info("../evil"),
    "a path out of jobs": info("jobs/1/../../evil"),
    "a path out within a name": info("jobs/../../round-00001.safetensors"),
    "an absolute path": info("/etc/evil"),
    "a name that starts well": info("lifl.db/../x"),
    "a name with a line": info("audit/audit-1.jsonl\n"),
    "a name of letters that look alike": info("jobs/１/round-00001.safetensors"),
    "another file": info("lifld.sock"),
    "a link": info("identity/key.pem", tarfile.SYMTYPE, link="/etc/shadow"),
    "a hard link": info("identity/ca.pem", tarfile.LNKTYPE, link="/etc/shadow"),
    "a folder": info("identity", tarfile.DIRTYPE),
    "a device": info("lifl.db", tarfile.CHRTYPE),
    "a pipe": info("authority.pem", tarfile.FIFOTYPE),
    "a long name to come": info("././@LongLink", tarfile.GNUTYPE_LONGNAME, 4096),
    "a header for the next one": info("x", tarfile.XHDTYPE, 4096),
    "a file with holes": info("lifl.db", tarfile.GNUTYPE_SPARSE),
    "a file of tape": info("lifl.db", tarfile.CONTTYPE),
    "a file twice": info("lifl.db"),
    "a job that the database has not": info("jobs/99/round-00001.safetensors"),
    "a key beyond its limit": info("identity/key.pem", size=limits.BACKUP_SMALL_BYTES_MAX + 1),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_has_no_place_in_a_backup_is_refused_by_its_name(whole: bytes, tmp_path: Path, what: str) -> None:
    evil = HOSTILE[what]
    drop = evil.name if "beyond" in what else None
    data = again(whole, lambda name, content: None if name == drop else content, (evil,))
    found = refused(data, tmp_path)
    assert found.code == "bad-backup"
    assert (
        repr(evil.name)[1:-1].removesuffix("\\n")[:9] in found.text.replace("jobs/99", "no job 99")
        or "99" in found.text
    )
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1, 1 << 70, -1])
def test_a_length_that_the_archive_does_not_have_takes_no_disk(whole: bytes, tmp_path: Path, size: int) -> None:
    first = info("jobs/1/round-00007.safetensors", size=size)
    found = refused(first.tobuf(tarfile.GNU_FORMAT) + whole, tmp_path)
    assert found.code in ("torn-backup", "bad-backup") and "round-00007" in found.text


def test_a_key_at_its_limit_is_taken(whole: bytes, tmp_path: Path) -> None:
    at_limit = bytes(limits.BACKUP_SMALL_BYTES_MAX)
    (tmp_path / "b2.tar").write_bytes(again(whole, lambda n, c: at_limit if n == "authority.pem" else c))
    restore_backup(tmp_path / "b2.tar", tmp_path / "there")


@pytest.mark.parametrize("beyond", [0, 1])
def test_the_files_of_a_backup_are_counted(
    state: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beyond: int
) -> None:
    count = sum(1 for _ in members(whole)) - 1
    monkeypatch.setattr(archive, "BACKUP_FILES_MAX", count - beyond)
    if not beyond:
        write_backup(state, tmp_path / "b2.tar")
        restore_backup(tmp_path / "b2.tar", tmp_path / "there")
        return
    with pytest.raises(ResourceFault, match="at most"):
        write_backup(state, tmp_path / "b2.tar")
    assert "more than" in refused(whole, tmp_path).text


def test_a_list_beyond_its_limit_is_not_read(whole: bytes, tmp_path: Path) -> None:
    head = info(archive.LIST, size=limits.BACKUP_LIST_BYTES_MAX + 1).tobuf(tarfile.GNU_FORMAT)
    assert "at most" in refused(head + bytes(1024), tmp_path).text


def test_rights_are_those_that_a_node_gives(whole: bytes, tmp_path: Path) -> None:
    def set_all(data: bytes) -> bytes:
        out = io.BytesIO()
        for member, content in members(data):
            member.mode = 0o7777
            out.write(member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
        return out.getvalue() + bytes(1024)

    (tmp_path / "open.tar").write_bytes(set_all(whole))
    restore_backup(tmp_path / "open.tar", tmp_path / "there")
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert modes["key.pem"] == modes["authority.pem"] == modes["lifl.db"] == modes["audit-1.jsonl"] == 0o600
    assert modes["cert.pem"] == modes["round-00001.safetensors"] == 0o644


def database(change: Callable[[sqlite3.Connection], object]) -> Callable[[str, bytes], bytes]:
    """Changes the database within an archive."""

    def changed(name: str, content: bytes) -> bytes:
        if name != archive.DATABASE:
            return content
        with closing(sqlite3.connect(":memory:")) as db:
            db.deserialize(content)
            change(db)
            db.commit()
            return db.serialize()

    return changed


DATABASES: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "none": (lambda name, content: None if name == archive.DATABASE else content, "bad-backup"),
    "garbage": (lambda name, content: b"x" * 9999 if name == archive.DATABASE else content, "bad-backup"),
    "a trigger": (
        database(lambda db: db.execute("CREATE TRIGGER t AFTER UPDATE ON jobs BEGIN SELECT 1; END")),
        "bad-backup",
    ),
    "a view": (
        database(lambda db: db.executescript("DROP TABLE plans; CREATE VIEW plans AS SELECT 1")),
        "bad-backup",
    ),
    "a job with a path as its name": (
        database(lambda db: db.execute("UPDATE jobs SET name = '../../x' WHERE number = 1")),
        "bad-backup",
    ),
    "a list of something else": (
        lambda name, content: b"[]" if name == archive.LIST else content,
        "bad-backup",
    ),
    "a file that is not listed": (
        lambda name, content: (
            json.dumps(json.loads(content) | {"files": []}).encode() if name == archive.LIST else content
        ),
        "bad-backup",
    ),
}


@pytest.mark.parametrize("what", DATABASES)
def test_a_database_that_no_node_starts_on_is_not_restored(whole: bytes, tmp_path: Path, what: str) -> None:
    change, code = DATABASES[what]
    assert refused(again(whole, change), tmp_path).code == code


NEWER = {
    "the database": database(lambda db: db.execute(f"PRAGMA user_version = {DATABASE_FORMAT + 1}")),
    "the folder": lambda name, content: b'{"format": 9, "release": "7.8.9"}' if name == "format.json" else content,
    "the backup": lambda name, content: (
        json.dumps({"backup": 9, "release": "7.8.9", "more": 1}).encode() if name == archive.LIST else content
    ),
}


@pytest.mark.parametrize("what", NEWER)
def test_a_newer_releases_backup_names_the_release_to_take(whole: bytes, tmp_path: Path, what: str) -> None:
    (tmp_path / "new.tar").write_bytes(again(whole, NEWER[what]))
    with pytest.raises(ResourceFault, match="take another release, LIFL"):
        restore_backup(tmp_path / "new.tar", tmp_path / "there")
    assert not (tmp_path / "there").exists() and not list(tmp_path.glob(".*"))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ResourceFault):
        restore_backup(tmp_path / "pipe", tmp_path / "there")


def test_where_there_is_no_room_for_the_backup_that_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the database, which has nothing."""
    made = sqlite3.connect

    def small(name: Any, **more: Any) -> sqlite3.Connection:
        found: sqlite3.Connection = made(name, **more)
        if not more:  # the copy
            found.execute("PRAGMA max_page_count=1")
        return found

    state = tmp_path / "state"
    state.mkdir()
    (tmp_path / "scratch").mkdir()
    with closing(NodeStore(state / "lifl.db")):
        monkeypatch.setattr(write.sqlite3, "connect", small)
        with pytest.raises(ResourceFault, match=f"^{tmp_path} has no room.*elsewhere"):
            write._copied(state / "lifl.db", tmp_path / "scratch" / "lifl.db")
