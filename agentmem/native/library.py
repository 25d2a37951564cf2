"""The C library: found, given the hash and cipher functions that it calls, and declared.

xxHash comes from the package `xxhash`, AES-GCM from OpenSSL's libcrypto, both as the shared
libraries that are there anyway: nothing of theirs is compiled in.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import logging
from collections.abc import Callable
from functools import cache

from agentmem.native.build import LIBRARY

logger = logging.getLogger(__name__)

# The dispatching functions choose the widest vectors of this CPU (xxh_x86dispatch.h). Older
# versions of the package lack them: the plain ones then do.
_HASH_FUNCTIONS = (
    ("XXH3_createState",),
    ("XXH3_freeState",),
    ("XXH3_128bits_reset",),
    ("XXH3_128bits_update_dispatch", "XXH3_128bits_update"),
    ("XXH3_128bits_digest",),
    ("XXH3_64bits_dispatch", "XXH3_64bits"),
    ("XXH3_128bits_dispatch", "XXH3_128bits"),
)
_CIPHER_FUNCTIONS = (
    "EVP_aes_256_gcm",
    "EVP_CIPHER_CTX_new",
    "EVP_CIPHER_CTX_free",
    "EVP_CipherInit_ex",
    "EVP_CipherUpdate",
    "EVP_CipherFinal_ex",
    "EVP_CIPHER_CTX_ctrl",
)
_U64, _SIZE, _INT = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int
_POINTER, _DEADLINE = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "agm_store": (_POINTER, _SIZE, _POINTER, _POINTER, ctypes.c_uint32, _INT, _DEADLINE, _POINTER),
    "agm_load": (
        *(_POINTER, _SIZE, _POINTER, _POINTER, ctypes.c_uint32, ctypes.c_uint32),
        *(_INT, _DEADLINE, _POINTER),
    ),
    "agm_seal": (_POINTER, _SIZE, _INT, _POINTER),
    "agm_write": (_INT, _POINTER, _POINTER, _SIZE, _U64, _INT),
    "agm_populate": (_U64, _SIZE),
}


class Library:
    """The loaded library. `has_cipher`: whether it can open and seal records.

    A call lets go of the interpreter lock for as long as it lasts.
    """

    def __init__(self, dll: ctypes.CDLL, *, has_cipher: bool) -> None:
        self.has_cipher = has_cipher
        self._dll = dll  # unloading it would leave the functions hanging
        for name, arguments in _SIGNATURES.items():
            function = getattr(dll, name)
            function.argtypes = arguments
            function.restype = _INT
        dll.agm_zero.argtypes = (_U64, _SIZE)
        dll.agm_zero.restype = None
        dll.agm_set_read.restype = None
        self.store: Callable[..., int] = dll.agm_store
        self.load: Callable[..., int] = dll.agm_load
        self.seal: Callable[..., int] = dll.agm_seal
        self.write: Callable[..., int] = dll.agm_write
        self.populate: Callable[[int, int], int] = dll.agm_populate
        self.zero: Callable[[int, int], None] = dll.agm_zero
        self.set_read: Callable[[object], None] = dll.agm_set_read


@cache
def library() -> Library | None:
    """The library, loaded once; None where it was not built or cannot be used here."""
    try:
        dll = ctypes.CDLL(str(LIBRARY))
        hashes = ctypes.CDLL(_xxhash_file())
        addresses = [_first_of(hashes, names) for names in _HASH_FUNCTIONS]
    except (OSError, AttributeError) as error:
        logger.warning("pages are moved in Python, which is slow: no native library: %s", error)
        return None
    dll.agm_set_hash((ctypes.c_void_p * len(addresses))(*addresses))
    return Library(dll, has_cipher=_give_cipher(dll))


def _xxhash_file() -> str:
    """The extension module of the package `xxhash`. Raises OSError for a build without one."""
    spec = importlib.util.find_spec("xxhash._xxhash")
    if spec is None or spec.origin is None:
        raise OSError("the package xxhash has no extension module")
    return spec.origin


def _first_of(dll: ctypes.CDLL, names: tuple[str, ...]) -> int:
    for name in names:
        if hasattr(dll, name):
            return _address(dll, name)
    raise AttributeError(f"xxhash exports none of {', '.join(names)}")


def _address(dll: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(dll, name), ctypes.c_void_p).value
    assert address is not None
    return address


def _give_cipher(dll: ctypes.CDLL) -> bool:
    """Whether libcrypto is there. Version 3 (2021) or 1.1: these functions are the same in both."""
    for name in ("libcrypto.so.3", "libcrypto.so.1.1", ctypes.util.find_library("crypto")):
        try:
            crypto = ctypes.CDLL(name) if name else None
            if crypto is None:
                continue
            addresses = [_address(crypto, function) for function in _CIPHER_FUNCTIONS]
        except (OSError, AttributeError):
            continue
        dll.agm_set_cipher((ctypes.c_void_p * len(addresses))(*addresses))
        return True
    logger.warning("no OpenSSL libcrypto: sealed pages are opened in Python, which is slow")
    return False
