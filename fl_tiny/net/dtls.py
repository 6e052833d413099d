# SPDX-License-Identifier: Apache-2.0
"""DTLS 1.2 with pre-shared keys over memory buffers: datagrams in, datagrams and plaintext out; no socket and no clock.

One thing stays OpenSSL's own: whether a flight is due again it decides by the system's clock (``Session.retransmit``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from fl_tiny.net import openssl
from fl_tiny.net.records import DATAGRAM_BYTES, RECORD_HEADER_BYTES, coalesced, records

PskLookup = Callable[[str], "bytes | None"]  # identity -> key; None refuses

PLAINTEXT_BYTES = DATAGRAM_BYTES - RECORD_HEADER_BYTES - 24  # nonce of 8 and tag of 16 of AES-GCM, the larger suite
FRAGMENT_BYTES = 1280  # with RELEASE_BUFFERS a session takes 64 instead of 93 KB (measured)
FIRST_RETRANSMIT_S = 1.0  # RFC 6347 section 4.2.4.1
LAST_RETRANSMIT_S = 8.0

FORWARD_SECRET = "ECDHE-PSK-CHACHA20-POLY1305"  # noqa: S105 - a cipher suite
PLAIN = "PSK-AES128-GCM-SHA256"
CONSTRAINED = "PSK-AES128-CCM8:@SECLEVEL=0"  # OpenSSL refuses the suite at any higher level
NO_CIPHER = "no shared cipher suite"
PAIRING = "pair:"  # identities good for one enrolment; only the forward-secret suite serves them

_OPTIONS = (
    openssl.SSL_OP_NO_QUERY_MTU
    | openssl.SSL_OP_NO_TICKET
    | openssl.SSL_OP_NO_COMPRESSION
    | openssl.SSL_OP_NO_RENEGOTIATION
    | openssl.SSL_OP_CIPHER_SERVER_PREFERENCE
)
_BUFFER_BYTES = 17_408  # a record of 2^14 bytes with its overhead


class Context:
    """An SSL_CTX of one role with its callbacks; it outlives every session made from it."""

    def __init__(self, method: str, suites: str, first_retransmit_s: float) -> None:
        """Raises: EnvironmentFault, when the system has no usable OpenSSL 3. Use ``client`` or ``server``."""
        self.calls = calls = openssl.load()
        self.sessions: dict[int, Session] = {}  # by address of the SSL object, for the callbacks
        self.buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
        self.refusals = 0  # exceptions inside callbacks, each read as refusal
        self.needs_extended_master_secret = CONSTRAINED not in suites
        first_us, last_us = int(first_retransmit_s * 1e6), int(LAST_RETRANSMIT_S * 1e6)
        self.timer = openssl.Timer(lambda _ssl, last: self._timed(_ssl, min(2 * last, last_us) if last else first_us))
        self._callbacks: list[Any] = []  # ctypes callbacks must live as long as the SSL_CTX that calls them
        ctx = calls.SSL_CTX_new(getattr(calls, method)())
        assert ctx, "SSL_CTX_new gave nothing"
        self.pointer: int | None = ctx
        for control, value in (
            (openssl.SSL_CTRL_SET_MIN_PROTO_VERSION, openssl.DTLS1_2_VERSION),
            (openssl.SSL_CTRL_SET_MAX_PROTO_VERSION, openssl.DTLS1_2_VERSION),
            (openssl.SSL_CTRL_SET_SESS_CACHE_MODE, openssl.SSL_SESS_CACHE_OFF),
            (openssl.SSL_CTRL_MODE, openssl.SSL_MODE_RELEASE_BUFFERS),
            (openssl.SSL_CTRL_SET_MAX_SEND_FRAGMENT, FRAGMENT_BYTES),
        ):
            calls.SSL_CTX_ctrl(ctx, control, value, None)
        groups = ctypes.c_char_p(b"X25519:P-256")
        done = calls.SSL_CTX_ctrl(ctx, openssl.SSL_CTRL_SET_GROUPS_LIST, 0, groups)
        assert done == 1, "OpenSSL knows no X25519 or no P-256"
        calls.SSL_CTX_set_options(ctx, _OPTIONS)
        done = calls.SSL_CTX_set_cipher_list(ctx, suites.encode())
        assert done == 1, f"OpenSSL knows none of {suites}"

    @classmethod
    def client(cls, identity: str, key: bytes, first_retransmit_s: float = FIRST_RETRANSMIT_S) -> Context:
        """A context whose sessions authenticate as ``identity`` with ``key``; a pairing identity offers one suite."""
        suites = FORWARD_SECRET if identity.startswith(PAIRING) else f"{FORWARD_SECRET}:{PLAIN}"
        self = cls("DTLS_client_method", suites, first_retransmit_s)
        name = identity.encode() + b"\0"

        def psk(_ssl: int, _hint: bytes, name_out: int, name_max: int, key_out: int, key_max: int) -> int:
            if len(name) > name_max or len(key) > key_max:
                return 0
            ctypes.memmove(name_out, name, len(name))
            ctypes.memmove(key_out, key, len(key))
            return len(key)

        self._callbacks.append(openssl.PskClient(psk))
        self.calls.SSL_CTX_set_psk_client_callback(self.pointer, self._callbacks[0])
        return self

    @classmethod
    def server(cls, lookup: PskLookup, constrained_peers: bool = False) -> Context:
        """A context that asks ``lookup`` for each identity's key; None, or an exception in it, refuses the handshake.

        ``constrained_peers`` adds PSK-AES128-CCM8 and does without the extended master secret.
        """
        suites = f"{FORWARD_SECRET}:{PLAIN}" + (f":{CONSTRAINED}" if constrained_peers else "")
        self = cls("DTLS_server_method", suites, FIRST_RETRANSMIT_S)

        def psk(ssl: int, name: bytes | None, key_out: int, key_max: int) -> int:
            try:
                key = self.sessions[ssl].accept_identity(name or b"", lookup)
            except Exception:  # ctypes would print it and go on; the rule here is: counted, and refused
                self.refusals += 1
                return 0
            if not 0 < len(key) <= key_max:
                return 0
            ctypes.memmove(key_out, key, len(key))
            return len(key)

        callbacks = openssl.PskServer(psk), openssl.CookieVerify(lambda _ssl, _cookie, _length: 1)  # see ``accept``
        self._callbacks.extend(callbacks)
        self.calls.SSL_CTX_set_psk_server_callback(self.pointer, callbacks[0])
        self.calls.SSL_CTX_set_cookie_verify_cb(self.pointer, callbacks[1])
        return self

    def connect(self) -> Session:
        """A new client session; its ClientHello waits in ``take``."""
        session = Session(self)
        self.calls.SSL_set_connect_state(session.pointer)
        session.advance()
        return session

    def accept(self, hello: bytes) -> Session | None:
        """A server session from a ClientHello whose cookie the caller has found good; None when OpenSSL refuses it."""
        session = Session(self)
        self.calls.SSL_set_accept_state(session.pointer)
        if session.listen(hello) <= 0:
            session.close()
            return None
        session.advance()
        return session

    def close(self) -> None:
        """End every session and free the SSL_CTX. May be called twice."""
        for session in list(self.sessions.values()):
            session.close()
        if self.pointer is not None:
            pointer, self.pointer = self.pointer, None
            self.calls.SSL_CTX_free(pointer)

    def _timed(self, ssl: int, duration_us: int) -> int:
        session = self.sessions.get(ssl)
        if session is not None:
            session.retransmit_s = duration_us / 1e6
        return duration_us


class Session:
    """One DTLS association and the only owner of its SSL object; after ``close`` every method returns at once.

    A callback that closes the session it was called from only marks it; the SSL object goes when the call has returned.
    """

    def __init__(self, context: Context) -> None:
        calls = context.calls
        self.context = context
        self.identity = ""  # what the peer asked to be authenticated as, in the server's sessions
        self.established = False
        self.ended = ""  # why it can carry nothing more; empty while it can
        self.alert = 0  # number of the alert that ended the handshake
        self.retransmit_s = 0.0  # OpenSSL's present retransmission time-out
        self._depth = 0  # calls into OpenSSL on this object that have not returned
        self._closed = False
        ssl = calls.SSL_new(context.pointer)
        assert ssl, "SSL_new gave nothing"
        self.pointer: int | None = ssl
        self._rbio, self._wbio = calls.BIO_new(calls.BIO_s_mem()), calls.BIO_new(calls.BIO_s_mem())
        for bio in (self._rbio, self._wbio):  # an empty buffer means "later", not "end"
            calls.BIO_ctrl(bio, openssl.BIO_C_SET_BUF_MEM_EOF_RETURN, -1, None)
        calls.SSL_set_bio(ssl, self._rbio, self._wbio)
        calls.SSL_ctrl(ssl, openssl.SSL_CTRL_SET_MTU, DATAGRAM_BYTES, None)
        calls.DTLS_set_timer_cb(ssl, context.timer)
        context.sessions[ssl] = self

    def listen(self, hello: bytes) -> int:
        """DTLSv1_listen over one ClientHello with a cookie: above 0 when OpenSSL takes it."""
        calls = self.context.calls
        if self.pointer is None:
            return -1
        calls.BIO_write(self._rbio, hello, len(hello))
        client = calls.BIO_ADDR_new()
        try:
            return int(self._call(calls.DTLSv1_listen, client))
        finally:
            calls.BIO_ADDR_free(client)

    def advance(self) -> bool:
        """Take the handshake as far as what was received allows; whether it is complete."""
        if self.pointer is None or self.ended:
            return False
        outcome = self._call(self.context.calls.SSL_do_handshake)
        if outcome != 1:
            self._check(outcome)
            return False
        if self.pointer is None:
            return False
        extended = self.context.calls.SSL_ctrl(self.pointer, openssl.SSL_CTRL_GET_EXTMS_SUPPORT, 0, None)
        if extended != 1 and self.context.needs_extended_master_secret:
            self.ended = "no extended master secret"
            return False
        self.established = True
        return True

    def receive(self, datagram: bytes) -> list[bytes]:
        """Plaintext of one datagram, a message a record. Afterwards see ``established``, ``ended`` and ``take``.

        OpenSSL gets the records one by one: 3.0 leaves unread what follows a repeated ClientHello in the same datagram.
        """
        messages: list[bytes] = []
        for record in records(datagram):
            if self.pointer is None or self.ended:
                break
            self.context.calls.BIO_write(self._rbio, record, len(record))
            if self.established or self.advance():
                messages += self._read()
        return messages

    def send(self, plaintext: bytes) -> None:
        """Put one message, at most PLAINTEXT_BYTES long, into a record of its own."""
        assert 0 < len(plaintext) <= PLAINTEXT_BYTES, f"{len(plaintext)} bytes are no message that fits a datagram"
        if self.pointer is None or self.ended or not self.established:
            return
        if self._call(self.context.calls.SSL_write, plaintext, len(plaintext)) <= 0:
            self._fail()

    def take(self) -> list[bytes]:
        """What must be sent now: whole records, coalesced to datagrams of at most DATAGRAM_BYTES."""
        calls, parts = self.context.calls, []
        if self.pointer is None:
            return []
        while (n := calls.BIO_read(self._wbio, self.context.buffer, _BUFFER_BYTES)) > 0:
            parts.append(ctypes.string_at(self.context.buffer, n))
        return list(coalesced(records(b"".join(parts))))

    def retransmit(self) -> bool:
        """Whether the last flight of the handshake was due again, by OpenSSL's clock; it then waits in ``take``."""
        if self.pointer is None or self.ended or self.established:
            return False
        outcome = self._call(self.context.calls.SSL_ctrl, openssl.DTLS_CTRL_HANDLE_TIMEOUT, 0, None)
        if outcome < 0:
            self._fail()
        return bool(outcome > 0)

    def exporter(self, label: bytes, length: int) -> bytes:
        """``length`` bytes of keying material that both ends share and nobody else knows. Source: RFC 5705."""
        assert self.pointer is not None and self.established, "exporter of a session that is not established"
        out = ctypes.create_string_buffer(length)
        done = self._call(self.context.calls.SSL_export_keying_material, out, length, label, len(label), None, 0, 0)
        assert done == 1, "SSL_export_keying_material failed"
        return out.raw

    def suite(self) -> str:
        """OpenSSL's name of the cipher suite that was or is being agreed on, empty before."""
        if self.pointer is None:
            return ""
        cipher = self.context.calls.SSL_get_pending_cipher(self.pointer)
        return self.context.calls.SSL_CIPHER_get_name(cipher).decode() if cipher else ""

    def shut_down(self) -> None:
        """Queue a close_notify for the peer, if there is an association to end. ``close`` must follow ``take``."""
        if self.pointer is not None and self.established and not self.ended:
            self._call(self.context.calls.SSL_shutdown)
            self.ended = "closed"

    def close(self) -> None:
        """Free the SSL object, at once or when the call that led here has returned. Nothing is sent."""
        self._closed = True
        self.ended = self.ended or "closed"
        if self._depth == 0:
            self._free()

    def accept_identity(self, name: bytes, lookup: PskLookup) -> bytes:
        """The key of the identity a client named; empty refuses it."""
        identity = name.decode()
        if not (identity and identity.isprintable()) or (
            identity.startswith(PAIRING) and self.suite() != FORWARD_SECRET
        ):
            return b""
        key = lookup(identity) or b""
        if key and not self._closed:
            self.identity = identity
        return key

    def _read(self) -> list[bytes]:
        messages: list[bytes] = []
        buffer = self.context.buffer
        while self.pointer is not None:
            n = self._call(self.context.calls.SSL_read, buffer, _BUFFER_BYTES)
            if n <= 0:
                self._check(n)
                break
            messages.append(ctypes.string_at(buffer, n))
        return messages

    def _call(self, function: Callable[..., int], *args: object) -> int:
        """Call OpenSSL on this object, and free it afterwards if it was closed in between."""
        self.context.calls.ERR_clear_error()  # SSL_get_error reads what an earlier call left behind
        self._depth += 1
        try:
            return function(self.pointer, *args)
        finally:
            self._depth -= 1
            if self._closed and self._depth == 0:
                self._free()

    def _check(self, outcome: int) -> None:
        if self.pointer is None:
            return
        error = self.context.calls.SSL_get_error(self.pointer, outcome)
        if error == openssl.SSL_ERROR_ZERO_RETURN:
            self.ended = "closed by the peer"
        elif error != openssl.SSL_ERROR_WANT_READ:
            self._fail()

    def _fail(self) -> None:
        reason = self.context.calls.ERR_peek_error() & openssl.ERR_REASON_MASK
        self.alert = max(0, reason - openssl.SSL_AD_REASON_OFFSET)
        other = NO_CIPHER if reason == openssl.SSL_R_NO_SHARED_CIPHER else f"OpenSSL reason {reason}"
        self.ended = f"alert {self.alert}" if self.alert else other

    def _free(self) -> None:
        if self.pointer is not None:
            pointer, self.pointer = self.pointer, None
            del self.context.sessions[pointer]
            self.context.calls.SSL_free(pointer)
