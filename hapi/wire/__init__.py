"""The wire: REST messages (`protocol`), and features as Arrow IPC streams (`stream`, `codecs`)."""

from hapi.wire.codecs import CODECS, Codec, get_codec
from hapi.wire.framing import StreamLimits
from hapi.wire.stream import FeatureBatch, StreamDecoder, StreamEncoder, StreamHeader, read_stream

__all__ = [
    "CODECS",
    "Codec",
    "FeatureBatch",
    "StreamDecoder",
    "StreamEncoder",
    "StreamHeader",
    "StreamLimits",
    "get_codec",
    "read_stream",
]
