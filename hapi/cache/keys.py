"""The name of a feature: a hash of everything that decides its value, and of nothing else."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence

from hapi.data import Manifest, Sample, TransformSpec

FORMAT = "hapi.feature/1"
KEY_BYTES = 32
_NO_INDEX = -1


class FeatureKeys:
    """Keys of the samples of one manifest at one cut, 32 bytes each.

    A feature is a pure function of the object's bytes (store, key, offset, length, version), the transform, the model,
    the cut and the numeric mode. If the transform is random, seed, epoch and the sample's index decide its draws, so
    they count as well; otherwise they do not. Labels, the order of samples and the other samples never do: two lists
    of the same pictures share their features.
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: TransformSpec,
        *,
        seed: int,
        epoch: int,
        model_digest: str,
        cut: str,
        precision: str = "float32",
    ) -> None:
        """`cut` by the graph's own name. `precision` names all that changes numbers by more than rounding does."""
        self._manifest = manifest
        self._is_random = transform.is_random
        draws = [seed, epoch] if self._is_random else None
        head = json.dumps([FORMAT, manifest.uri, transform.digest, draws, model_digest, cut, precision])
        self._hash = hashlib.blake2b(head.encode(), digest_size=KEY_BYTES)
        self._hash.update(b"\0")  # JSON holds none: the head ends here

    def of(self, index: int) -> bytes:
        """The key of one sample; IndexError outside of the manifest."""
        return self._key(index, self._manifest.sample(index))

    def many(self, indices: Sequence[int]) -> list[bytes]:
        """The keys of several samples, much faster than one by one."""
        return list(self.of_samples(dict(zip(indices, self._manifest.samples(indices), strict=True))).values())

    def of_samples(self, samples: Mapping[int, Sample]) -> dict[int, bytes]:
        """The keys of samples that are at hand, by index."""
        return {index: self._key(index, sample) for index, sample in samples.items()}

    def _key(self, index: int, sample: Sample) -> bytes:
        key = sample.key.encode()
        place = index if self._is_random else _NO_INDEX
        hasher = self._hash.copy()
        hasher.update(struct.pack("<qqqq", place, sample.offset, sample.length, len(key)) + key)
        hasher.update(sample.version.encode())
        return hasher.digest()
