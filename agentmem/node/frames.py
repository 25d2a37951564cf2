"""How messages travel: length-prefixed msgpack frames, each one checked.

frame    4 bytes little-endian length of the body, body
body     msgpack array: call number, then one of the structs of `protocol`, tagged by its op
"""

from __future__ import annotations

import struct

import msgspec

from agentmem.errors import ProtocolError
from agentmem.node.protocol import Count, Greeting, Hello, Reply, Request

FRAME_BYTES_MAX = 8 << 20
# A peer that has not said who it is may send this much at once.
HELLO_BYTES_MAX = 4096
LENGTH = struct.Struct("<I")

_encoder = msgspec.msgpack.Encoder()
_greeting_decoder = msgspec.msgpack.Decoder(tuple[Count, Greeting])
_hello_decoder = msgspec.msgpack.Decoder(tuple[Count, Hello])
_request_decoder = msgspec.msgpack.Decoder(tuple[Count, Request])
_reply_decoder = msgspec.msgpack.Decoder(tuple[Count, Reply])


def encode_frame(call: int, message: Request | Reply) -> bytes:
    """One frame. Raises ProtocolError when it would be longer than a frame may be."""
    body = _encoder.encode((call, message))
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(f"a frame of {len(body)} bytes is over the limit of {FRAME_BYTES_MAX}")
    return LENGTH.pack(len(body)) + body


def body_bytes(prefix: bytes, limit: int = FRAME_BYTES_MAX) -> int:
    """Length of the body that follows. Raises ProtocolError over the limit."""
    (size,) = LENGTH.unpack(prefix)
    if not 0 < size <= limit:
        raise ProtocolError(f"a frame of {size} bytes: 1 to {limit} are allowed")
    return int(size)


def decode_greeting(body: bytes) -> Greeting:
    """The versions that a peer speaks, whatever else it says. Raises ProtocolError."""
    try:
        return _greeting_decoder.decode(body)[1]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the first frame must be hello: {error}") from error


def decode_hello(body: bytes) -> tuple[int, Hello]:
    """Call number and hello. Raises ProtocolError for anything else."""
    try:
        return _hello_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a hello: {error}") from error


def decode_request(body: bytes) -> tuple[int, Request]:
    """Call number and request. Raises ProtocolError for anything that is no request."""
    try:
        return _request_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a request: {error}") from error


def decode_reply(body: bytes) -> tuple[int, Reply]:
    """Call number and reply. Raises ProtocolError for anything that is no reply."""
    try:
        return _reply_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a reply: {error}") from error
