# SPDX-License-Identifier: Apache-2.0
"""The calls of libssl and libcrypto that we use, declared for ctypes; the only module that knows these libraries.

Source of every signature and number: ssl.h, bio.h, dtls1.h and err.h of OpenSSL 3.0, whose ABI holds for all of 3.x.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, c_char_p, c_int, c_long, c_size_t, c_uint, c_uint64, c_ulong, c_void_p
from types import SimpleNamespace
from typing import Any

from fl_tiny.errors import EnvironmentFault

LIBSSL = "libssl.so.3"
LIBCRYPTO = "libcrypto.so.3"
OLDEST = 0x30000000  # OpenSSL_version_num() of 3.0.0

DTLS1_2_VERSION = 0xFEFD
PSK_MAX_PSK_LEN = 256  # what 3.0 hands to the callbacks; ssl.h allows 512

SSL_ERROR_WANT_READ = 2
SSL_ERROR_ZERO_RETURN = 6

SSL_CTRL_SET_MTU = 17
SSL_CTRL_MODE = 33
SSL_CTRL_SET_SESS_CACHE_MODE = 44
SSL_CTRL_SET_MAX_SEND_FRAGMENT = 52
DTLS_CTRL_HANDLE_TIMEOUT = 74
SSL_CTRL_SET_GROUPS_LIST = 92
SSL_CTRL_GET_EXTMS_SUPPORT = 122
SSL_CTRL_SET_MIN_PROTO_VERSION = 123
SSL_CTRL_SET_MAX_PROTO_VERSION = 124

SSL_SESS_CACHE_OFF = 0
SSL_MODE_RELEASE_BUFFERS = 0x10

SSL_OP_NO_QUERY_MTU = 1 << 12
SSL_OP_COOKIE_EXCHANGE = 1 << 13
SSL_OP_NO_TICKET = 1 << 14
SSL_OP_NO_COMPRESSION = 1 << 17
SSL_OP_CIPHER_SERVER_PREFERENCE = 1 << 22
SSL_OP_NO_RENEGOTIATION = 1 << 30

BIO_CTRL_PENDING = 10
BIO_C_SET_BUF_MEM_EOF_RETURN = 130

SSL_R_NO_SHARED_CIPHER = 193
SSL_AD_REASON_OFFSET = 1000  # an alert of the peer is the reason 1000 + its number
ERR_REASON_MASK = 0x7FFFFF

CookieVerify = CFUNCTYPE(c_int, c_void_p, c_void_p, c_uint)
PskServer = CFUNCTYPE(c_uint, c_void_p, c_char_p, c_void_p, c_uint)
PskClient = CFUNCTYPE(c_uint, c_void_p, c_char_p, c_void_p, c_uint, c_void_p, c_uint)
Timer = CFUNCTYPE(c_uint, c_void_p, c_uint)

_SSL: dict[str, tuple[Any, list[Any]]] = {
    "DTLS_client_method": (c_void_p, []),
    "DTLS_server_method": (c_void_p, []),
    "DTLS_set_timer_cb": (None, [c_void_p, Timer]),
    "DTLSv1_listen": (c_int, [c_void_p, c_void_p]),
    "SSL_CIPHER_get_name": (c_char_p, [c_void_p]),
    "SSL_CTX_ctrl": (c_long, [c_void_p, c_int, c_long, c_void_p]),
    "SSL_CTX_free": (None, [c_void_p]),
    "SSL_CTX_new": (c_void_p, [c_void_p]),
    "SSL_CTX_set_cipher_list": (c_int, [c_void_p, c_char_p]),
    "SSL_CTX_set_cookie_verify_cb": (None, [c_void_p, CookieVerify]),
    "SSL_CTX_set_options": (c_uint64, [c_void_p, c_uint64]),
    "SSL_CTX_set_psk_client_callback": (None, [c_void_p, PskClient]),
    "SSL_CTX_set_psk_server_callback": (None, [c_void_p, PskServer]),
    "SSL_ctrl": (c_long, [c_void_p, c_int, c_long, c_void_p]),
    "SSL_do_handshake": (c_int, [c_void_p]),
    "SSL_export_keying_material": (
        c_int,
        [c_void_p, c_char_p, c_size_t, c_char_p, c_size_t, c_char_p, c_size_t, c_int],
    ),
    "SSL_free": (None, [c_void_p]),
    "SSL_get_error": (c_int, [c_void_p, c_int]),
    "SSL_get_pending_cipher": (c_void_p, [c_void_p]),
    "SSL_new": (c_void_p, [c_void_p]),
    "SSL_read": (c_int, [c_void_p, c_char_p, c_int]),
    "SSL_set_accept_state": (None, [c_void_p]),
    "SSL_set_bio": (None, [c_void_p, c_void_p, c_void_p]),
    "SSL_set_connect_state": (None, [c_void_p]),
    "SSL_shutdown": (c_int, [c_void_p]),
    "SSL_write": (c_int, [c_void_p, c_char_p, c_int]),
}

_CRYPTO: dict[str, tuple[Any, list[Any]]] = {
    "BIO_ADDR_free": (None, [c_void_p]),
    "BIO_ADDR_new": (c_void_p, []),
    "BIO_ctrl": (c_long, [c_void_p, c_int, c_long, c_void_p]),
    "BIO_new": (c_void_p, [c_void_p]),
    "BIO_read": (c_int, [c_void_p, c_char_p, c_int]),
    "BIO_s_mem": (c_void_p, []),
    "BIO_write": (c_int, [c_void_p, c_char_p, c_int]),
    "ERR_clear_error": (None, []),
    "ERR_peek_error": (c_ulong, []),
    "OpenSSL_version_num": (c_ulong, []),
}


def load(libssl: str = LIBSSL, libcrypto: str = LIBCRYPTO) -> SimpleNamespace:
    """The declared functions as attributes.

    Raises: EnvironmentFault, naming the package, when a library is absent, below 3.0, or built without DTLS or PSK.
    """
    hint = "install OpenSSL 3: package libssl3 on Debian, Ubuntu and Alpine (libssl3t64 on newer Debian and Ubuntu)"
    try:
        crypto, ssl = ctypes.CDLL(libcrypto), ctypes.CDLL(libssl)
    except OSError as e:
        raise EnvironmentFault(f"cannot load the system's OpenSSL: {e}", hint) from e
    calls = SimpleNamespace()
    for library, table in ((crypto, _CRYPTO), (ssl, _SSL)):
        for name, (restype, argtypes) in table.items():
            try:
                function = getattr(library, name)
            except AttributeError as e:
                raise EnvironmentFault(
                    f"{libssl} has no {name}: older than 3.0, or built without DTLS or PSK", hint
                ) from e
            function.restype, function.argtypes = restype, argtypes
            setattr(calls, name, function)
    version = calls.OpenSSL_version_num()
    if version < OLDEST:
        raise EnvironmentFault(f"{libcrypto} is OpenSSL {version >> 28}.{version >> 20 & 0xFF}; 3.0 is needed", hint)
    return calls
