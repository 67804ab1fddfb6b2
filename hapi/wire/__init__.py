"""The wire: REST messages (`protocol`), and features as Arrow IPC streams (`stream`, `reader`, `codecs`)."""

from hapi.wire.allowed import Allowed
from hapi.wire.codecs import CODECS, Codec, get_codec
from hapi.wire.framing import StreamLimits
from hapi.wire.reader import StreamDecoder, StreamHeader, read_stream
from hapi.wire.stream import FeatureBatch, StreamEncoder

__all__ = [
    "CODECS",
    "Allowed",
    "Codec",
    "FeatureBatch",
    "StreamDecoder",
    "StreamEncoder",
    "StreamHeader",
    "StreamLimits",
    "get_codec",
    "read_stream",
]
