"""What the server tells of the features that it keeps."""

from __future__ import annotations

from hapi.cache import FeatureCache
from hapi.wire.protocol import BucketStatus, CacheStatus
from storage_server.metrics import Metrics


def cache_status(kept: FeatureCache, metrics: Metrics) -> CacheStatus:
    """For /v1/status."""
    continued = int(metrics.registry.get_sample_value("hapi_feature_cache_continued_total") or 0)
    return CacheStatus(memory_bytes=kept.nbytes, hits=kept.hits, continued=continued, bucket=_bucket_status(kept))


def count_kept(kept: FeatureCache, metrics: Metrics) -> None:
    """Sets the gauges that /metrics shows."""
    metrics.cache_hits.set(kept.hits)
    metrics.cache_bytes.set(kept.nbytes)
    if kept.bucket is not None:
        metrics.bucket_bytes.set(kept.bucket.nbytes)
        metrics.bucket_hits.set(kept.bucket.hits)
        metrics.bucket_failures.set(kept.bucket.failures)
        metrics.bucket_dropped.set(kept.bucket.dropped)


def _bucket_status(kept: FeatureCache) -> BucketStatus | None:
    bucket = kept.bucket
    if bucket is None:
        return None
    return BucketStatus(bytes=bucket.nbytes, hits=bucket.hits, failures=bucket.failures, dropped=bucket.dropped)
