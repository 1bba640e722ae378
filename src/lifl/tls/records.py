"""A TLS connection's records between its socket and memory, compiled (`records.c`): a body without a copy too many.

The connection is made by Python's `ssl`, with all that it checks; from the end of the handshake on a `Channel` does
what OpenSSL's `SSL_read_ex` and `SSL_write_ex` do for `ssl.SSLObject`, many records at a time and without the
interpreter's lock.  Both use the library that `_ssl` has loaded, and no other: its functions are looked up there.

`ssl.SSLObject` does not tell where its connection of OpenSSL's is.  In CPython's object it stands between two fields
whose values are known, the weak reference to a socket (none) and the context; where that is not so, or a function is
missing, or the library could not be built, there is no channel, and everything goes by `ssl` alone, more slowly.
"""

from __future__ import annotations

import _ssl
import ctypes
import errno
import os
import ssl
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

FUNCTIONS = (
    *("SSL_read_ex", "SSL_write_ex", "SSL_get_error", "SSL_has_pending", "SSL_get_rbio", "SSL_get_wbio"),
    *("SSL_set0_rbio", "SSL_set0_wbio", "SSL_set_read_ahead"),
    *("BIO_meth_new", "BIO_meth_set_read", "BIO_meth_set_write", "BIO_meth_set_ctrl", "BIO_new", "BIO_free"),
    *("BIO_up_ref", "BIO_set_data", "BIO_get_data", "BIO_set_init", "BIO_set_flags", "BIO_clear_flags", "BIO_read"),
    *("BIO_ctrl_pending", "ERR_peek_last_error", "ERR_clear_error"),
)
"""What `records.c` calls, in its order."""
CIPHERS = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""All that TLS 1.3 has by default, the one first that costs least where the processor has AES."""
DONE, AGAIN, ENDED, BUSY, INTERRUPTED, SYSTEM, FAILED = range(7)
_WORD = ctypes.sizeof(ctypes.c_void_p)
_HEADER = object.__basicsize__
_APP_DATA = 0
_SMALL_BYTES = 32 * 1024


class Library:
    """The compiled part, over the OpenSSL of `_ssl`.  Raises `OSError`, `AttributeError` where it cannot be used."""

    def __init__(self, path: str) -> None:
        self.path = path
        openssl = ctypes.CDLL(getattr(_ssl, "__file__", None))
        library = ctypes.CDLL(path)
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        addresses = [ctypes.cast(getattr(openssl, name), pointer).value for name in FUNCTIONS]
        library.lifl_records_load.argtypes = (pointer, number)
        if not library.lifl_records_load((pointer * len(addresses))(*addresses), len(addresses)):
            raise OSError(f"{path} is of another release")
        self.open = _function(library.lifl_records_open, pointer, pointer)
        self.close = _function(library.lifl_records_close, None, pointer)
        self.receive = _function(library.lifl_records_receive, size, pointer, number, pointer, size, number)
        self.send = _function(library.lifl_records_send, size, pointer, number, pointer, size, number)
        self.flush = _function(library.lifl_records_flush, None, pointer, number, number)
        self.outcome = _function(library.lifl_records_outcome, number, pointer)
        self.error = _function(library.lifl_records_error, number, pointer)
        self.more = _function(library.lifl_records_more, number, pointer)
        self._reason = _function(openssl.ERR_reason_error_string, ctypes.c_char_p, ctypes.c_ulong)
        self._app_data = _function(openssl.SSL_get_ex_data, pointer, pointer, number)
        self._set_ciphers = _function(openssl.SSL_set_ciphersuites, number, pointer, ctypes.c_char_p)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._connection(context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True))

    def _connection(self, tls: ssl.SSLObject) -> int:
        """Return the address of OpenSSL's connection.  Raise `OSError` when it is not where it is looked for."""
        inner: Any = tls._sslobj  # type: ignore[attr-defined]
        words = (ctypes.c_size_t * 3).from_address(id(inner) + _HEADER)
        if type(inner).__basicsize__ < _HEADER + 3 * _WORD or words[0] or words[2] != id(tls.context):
            raise OSError("this Python's _ssl keeps its connections elsewhere")
        if self._app_data(words[1], _APP_DATA) != id(inner):
            raise OSError("this Python's _ssl does not note its connections")
        return words[1]

    def prefer_ciphers(self, tls: ssl.SSLObject) -> None:
        """Have a connection, before its handshake, prefer the cipher that costs least."""
        self._set_ciphers(self._connection(tls), CIPHERS)

    def channel(self, tls: ssl.SSLObject) -> Channel:
        """Return the channel of a connection whose handshake is complete."""
        return Channel(self, tls, self._connection(tls))

    def reason(self, code: int) -> str:
        """Return the name of an error of OpenSSL's, as `ssl.SSLError.reason` has it."""
        return str((self._reason(code) or b"").decode()).upper().replace(" ", "_")


class Channel:
    """What a connection receives and sends; its calls exclude each other, which is the caller's part."""

    def __init__(self, library: Library, tls: ssl.SSLObject, connection: int) -> None:
        self._library = library
        self._tls = tls  # it owns the connection
        self._address = library.open(connection)
        if not self._address:
            raise MemoryError
        weakref.finalize(self, library.close, self._address).atexit = False

    def receive(self, fd: int, room: memoryview, waits: bool) -> int:
        """Decrypt what has come into `room`; return how many bytes.  `waits`: for the first one."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(room))
        return int(self._library.receive(self._address, fd, address, len(room), waits))

    def send(self, fd: int, data: memoryview, waits: bool) -> int:
        """Send what the kernel takes, `waits`: all; return of how many bytes all of the records have left."""
        return int(self._library.send(self._address, fd, _address_of(data), len(data), waits))

    def flush(self, fd: int, waits: bool) -> None:
        """Send what is encrypted already, and what OpenSSL says by itself."""
        self._library.flush(self._address, fd, waits)

    @property
    def outcome(self) -> int:
        """Why the last call has not done more: `DONE` to `FAILED`."""
        return int(self._library.outcome(self._address))

    @property
    def pending(self) -> bool:
        """Whether there may be something to read without the descriptor."""
        return bool(self._library.more(self._address))

    @property
    def reason(self) -> str:
        """What OpenSSL has `FAILED` of."""
        return self._library.reason(self._library.error(self._address))

    def system_error(self) -> OSError:
        """Return the error of the `SYSTEM`."""
        number = self._library.error(self._address) or errno.EIO
        return OSError(number, os.strerror(number))


def _function(found: Any, result: Any, *arguments: Any) -> Callable[..., Any]:
    found.restype, found.argtypes = result, arguments
    return found  # type: ignore[no-any-return]


def _address_of(data: memoryview) -> int | bytes:
    """Return what ctypes takes as the address of bytes; NumPy is needed for many that cannot be written."""
    if not data:
        return 0
    if not data.readonly:
        return ctypes.addressof(ctypes.c_char.from_buffer(data))
    if len(data) <= _SMALL_BYTES:
        return bytes(data)
    import numpy as np

    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


def load() -> Library | None:
    """Return the compiled part, or None where it has not been built or does not fit this Python's `ssl`."""
    found = find_spec("lifl.tls._records")
    if found is None or found.origin is None:
        return None
    try:
        return Library(found.origin)
    except (OSError, AttributeError):
        return None


COMPILED = load()
"""The compiled part, if there is one.  Tests set it to None to have `ssl` alone."""
