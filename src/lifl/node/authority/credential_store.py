"""What is kept of tokens, certificates and revocations: tables of their own in the node's database.

The authority's node has tokens and certificates; revocations and bearer tokens are on every node, on the others as the
coordinator told them last.  A row is durable when a call returns.  A token's use is counted in the transaction that
notes its certificate: of two who come with the last use of one, one gets it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from lifl.core.errors import Refused, ResourceFault
from lifl.core.limits import CERTIFICATES_MAX, REVOKED_MAX, TOKENS_MAX
from lifl.core.trust.bearers import Bearer
from lifl.core.trust.enrolment import TokenRow
from lifl.core.trust.revocation import Revocation
from lifl.node.database import Database, tables_fault

FORMAT = 1
TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS credentials (
    id INTEGER PRIMARY KEY CHECK (id = 1), format INTEGER NOT NULL, cluster TEXT NOT NULL DEFAULT '');
INSERT OR IGNORE INTO credentials (id, format) VALUES (1, {FORMAT});
CREATE TABLE IF NOT EXISTS tokens (
    number TEXT PRIMARY KEY, digest BLOB NOT NULL, role TEXT NOT NULL, pattern TEXT NOT NULL, jobs TEXT NOT NULL,
    uses INTEGER NOT NULL, used INTEGER NOT NULL, created_unix_s REAL NOT NULL, expires_unix_s REAL NOT NULL,
    revoked_unix_s REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS certificates (
    number INTEGER PRIMARY KEY AUTOINCREMENT, serial TEXT NOT NULL UNIQUE, role TEXT NOT NULL, name TEXT NOT NULL,
    jobs TEXT NOT NULL, key BLOB NOT NULL, key_since_unix_s REAL NOT NULL, token TEXT NOT NULL,
    issued_unix_s REAL NOT NULL, expires_unix_s REAL NOT NULL);
CREATE INDEX IF NOT EXISTS certificates_of_name ON certificates (role, name);
CREATE INDEX IF NOT EXISTS certificates_of_key ON certificates (key);
CREATE TABLE IF NOT EXISTS revocations (
    which TEXT PRIMARY KEY, revoked_unix_s REAL NOT NULL, expires_unix_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS bearers (
    number TEXT PRIMARY KEY, digest BLOB NOT NULL, role TEXT NOT NULL, name TEXT NOT NULL, job TEXT NOT NULL,
    created_unix_s REAL NOT NULL, expires_unix_s REAL NOT NULL, revoked INTEGER NOT NULL DEFAULT 0);
COMMIT;
"""
DROP_COVERED = """
DELETE FROM revocations WHERE which IN (
    SELECT serial FROM certificates JOIN revocations AS whole ON whole.which = role || '/' || name
    WHERE issued_unix_s <= whole.revoked_unix_s)
"""
"""Forgets revoked serials of whose names all is revoked that was issued until then."""
MERGE_NAMES = f"""
BEGIN IMMEDIATE;
INSERT OR IGNORE INTO revocations
    SELECT role || '/' || name, max(max(revoked_unix_s, issued_unix_s)) + 1e-6, max(revocations.expires_unix_s)
    FROM certificates LEFT JOIN revocations ON which = serial
    GROUP BY role, name HAVING count(*) > 1 AND count(which) = count(*);
{DROP_COVERED};
COMMIT;
"""
"""Makes one entry of a name whose certificates are all revoked: earlier releases wrote one for each of them."""


class CertificateRow(msgspec.Struct, frozen=True):
    """A certificate as it was issued; `key_since_unix_s` is when its key was certified first, `token` who let it in."""

    number: int
    serial: str
    role: str
    name: str
    jobs: tuple[str, ...]
    key: bytes
    key_since_unix_s: float
    token: str
    issued_unix_s: float
    expires_unix_s: float


class CredentialStore(Database):
    """The tables; in the file of the node's database, of which the daemon is the only user.

    Every method raises `DatabaseFault` when the database cannot be used now, and `ResourceFault` when it is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._told():
            fault = tables_fault(self._db, TABLES, optional=True)
            if fault:
                self.close()
                raise ResourceFault(f"{path} is damaged: {fault}; `lifl doctor --repair` sets it aside")
            self._db.executescript(TABLES)
            self._db.executescript(MERGE_NAMES)
        ((found,),) = self._all("SELECT format FROM credentials")
        if found != FORMAT:
            self.close()
            raise ResourceFault(
                f"{path}: tokens and certificates are kept in format {found}, this lifld reads {FORMAT}: "
                "use the lifld that wrote it, or another state folder"
            )

    def cluster(self, drawn: str) -> str:
        """Return the name of the cluster whose authority this node is; the first time it becomes `drawn`."""
        self._write("UPDATE credentials SET cluster = ? WHERE cluster = ''", (drawn,))
        ((name,),) = self._all("SELECT cluster FROM credentials")
        return str(name)

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def add_token(self, row: TokenRow, now_unix_s: float) -> None:
        """Keep a new token; those that are over are forgotten.  Raise `Refused` when there are too many."""
        with self._told(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM tokens WHERE revoked_unix_s > 0 OR expires_unix_s <= ?", (now_unix_s,))
            if self._count("tokens") >= TOKENS_MAX:  # who lost the answer to the last use cannot ask again
                self._db.execute("DELETE FROM tokens WHERE used >= uses")
            if self._count("tokens") >= TOKENS_MAX:
                text = f"{TOKENS_MAX} tokens are valid: revoke some (`lifl token list`, `lifl token revoke`), or wait"
                raise Refused("too-many-tokens", "token", text)
            values = [row.number, row.digest, row.role, row.pattern, ",".join(row.jobs), row.uses, row.used]
            values += [row.created_unix_s, row.expires_unix_s, row.revoked_unix_s]
            self._db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def token(self, number: str) -> TokenRow | None:
        """Return the token of this number."""
        return next(iter(self._tokens("WHERE number = ?", number)), None)

    def tokens(self) -> list[TokenRow]:
        """Return all tokens that are kept, in the order in which they were made."""
        return self._tokens("ORDER BY created_unix_s, number")

    def _tokens(self, which: str, *given: str) -> list[TokenRow]:
        columns = "number, digest, role, pattern, jobs, uses, used, created_unix_s, expires_unix_s, revoked_unix_s"
        return [self._as(TokenRow, columns, row) for row in self._all(f"SELECT {columns} FROM tokens {which}", given)]

    def revoke_token(self, number: str, now_unix_s: float) -> None:
        """Let nobody in by this token any more."""
        self._write("UPDATE tokens SET revoked_unix_s = ? WHERE number = ?", (now_unix_s, number))

    # ---- certificates ------------------------------------------------------------------------------------------------

    def add_certificate(self, row: CertificateRow, use_of: str, now_unix_s: float) -> None:
        """Keep a certificate that is to be handed out, and count a use of the token `use_of`, if there is one.

        Raise `Refused` when the token's last use was taken meanwhile, or there are too many certificates.
        """
        with self._told(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM certificates WHERE expires_unix_s <= ?", (now_unix_s,))
            if self._count("certificates") >= CERTIFICATES_MAX:
                text = f"{CERTIFICATES_MAX} certificates have not expired, which is as many as one cluster has"
                raise Refused("too-many-certificates", "", text)
            if use_of:
                valid = "used < uses AND revoked_unix_s = 0 AND expires_unix_s > ?"
                use = f"UPDATE tokens SET used = used + 1 WHERE number = ? AND {valid}"
                if self._db.execute(use, (use_of, now_unix_s)).rowcount != 1:
                    raise Refused("token-over", "token", "this token is used up: ask for a new one")
            values = [row.serial, row.role, row.name, ",".join(row.jobs), row.key, row.key_since_unix_s, row.token]
            columns = "serial, role, name, jobs, key, key_since_unix_s, token, issued_unix_s, expires_unix_s"
            insert = f"INSERT INTO certificates ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            self._db.execute(insert, (*values, row.issued_unix_s, row.expires_unix_s))

    def certificates(self, after: int, most: int) -> list[CertificateRow]:
        """Return certificates whose numbers are greater than `after`, in the order in which they were issued."""
        return self._certificates("WHERE number > ? ORDER BY number LIMIT ?", after, most)

    def certificates_of(self, role: str, name: str, now_unix_s: float) -> list[CertificateRow]:
        """Return somebody's certificates that have not expired."""
        return self._certificates("WHERE role = ? AND name = ? AND expires_unix_s > ?", role, name, now_unix_s)

    def certificates_named(self, name: str, now_unix_s: float) -> list[CertificateRow]:
        """Return the certificates of all who have this name, in whatever role, that have not expired."""
        return self._certificates("WHERE name = ? AND expires_unix_s > ?", name, now_unix_s)

    def certificates_with(self, key: bytes) -> list[CertificateRow]:
        """Return the certificates of a key."""
        return self._certificates("WHERE key = ? ORDER BY number", key)

    def certificate(self, serial: str) -> CertificateRow | None:
        """Return the certificate with this serial."""
        return next(iter(self._certificates("WHERE serial = ?", serial)), None)

    def certificates_beginning(self, digits: str, most: int) -> list[CertificateRow]:
        """Return certificates whose serials begin with these digits (0 to 9, A to F)."""
        return self._certificates("WHERE serial LIKE ? ORDER BY number LIMIT ?", f"{digits}%", most)

    def _certificates(self, which: str, *given: object) -> list[CertificateRow]:
        columns = "number, serial, role, name, jobs, key, key_since_unix_s, token, issued_unix_s, expires_unix_s"
        rows = self._all(f"SELECT {columns} FROM certificates {which}", given)
        return [self._as(CertificateRow, columns, row) for row in rows]

    # ---- revocations -------------------------------------------------------------------------------------------------

    def revoke(self, row: Revocation, now_unix_s: float) -> None:
        """Keep a revocation beside those that are there.  Raise `Refused` when there are too many."""
        with self._told(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM revocations WHERE expires_unix_s <= ?", (now_unix_s,))
            self._insert_revocations([row])
            self._db.execute(DROP_COVERED)
            if self._count("revocations") > REVOKED_MAX:
                text = f"more than {REVOKED_MAX} names and certificates that have not expired would be revoked"
                raise Refused("too-many-revocations", "", f"{text}: wait until some have expired")

    def replace_revocations(self, rows: Iterable[Revocation]) -> None:
        """Keep these revocations, and no others: the coordinator's word."""
        with self._told(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM revocations")
            self._insert_revocations(rows)

    def _insert_revocations(self, rows: Iterable[Revocation]) -> None:
        insert = "INSERT OR REPLACE INTO revocations VALUES (?, ?, ?)"
        self._db.executemany(insert, [(row.which, row.revoked_unix_s, row.expires_unix_s) for row in rows])

    def revocations(self, now_unix_s: float) -> list[Revocation]:
        """Return what is not believed any more."""
        columns = "which, revoked_unix_s, expires_unix_s"
        rows = self._all(f"SELECT {columns} FROM revocations WHERE expires_unix_s > ? ORDER BY which", (now_unix_s,))
        return [self._as(Revocation, columns, row) for row in rows]

    # ---- bearer tokens -----------------------------------------------------------------------------------------------

    def bearers(self, now_unix_s: float) -> list[Bearer]:
        """Return the bearer tokens that have not expired."""
        columns = "number, digest, role, name, job, created_unix_s, expires_unix_s, revoked"
        rows = self._all(f"SELECT {columns} FROM bearers WHERE expires_unix_s > ? ORDER BY number", (now_unix_s,))
        return [self._as(Bearer, columns, (*row[:-1], bool(row[-1]))) for row in rows]

    def replace_bearers(self, rows: Iterable[Bearer]) -> None:
        """Keep these bearer tokens, and no others."""
        with self._told(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM bearers")
            values = [tuple(getattr(row, name) for name in row.__struct_fields__) for row in rows]
            self._db.executemany("INSERT INTO bearers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def _count(self, table: str) -> int:
        ((count,),) = self._db.execute(f"SELECT count(*) FROM {table}").fetchall()
        return int(count)

    def _as(self, kind: Any, columns: str, row: tuple[Any, ...]) -> Any:
        fields = dict(zip(columns.split(", "), row, strict=True))
        if "jobs" in fields:
            fields["jobs"] = tuple(filter(None, str(fields["jobs"]).split(",")))
        try:
            return msgspec.convert(fields, kind)
        except msgspec.ValidationError as error:
            raise ResourceFault(
                f"{self.path} is damaged: a row of {kind.__name__}: {error}; `lifl doctor --repair` sets it aside"
            ) from error
