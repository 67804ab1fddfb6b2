"""Which features of a loader are kept for later epochs, and by what names on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial

from compute_client.backbone import Backbone
from compute_client.cache import CacheOptions, LoaderCache
from compute_client.dataset import Dataset
from compute_client.decode import Transform
from compute_client.stats import LoaderStats
from hapi.cache import FeatureKeys
from hapi.data import TransformSpec
from hapi.errors import CaptureError, InputError
from hapi.plan import OUTPUT
from hapi.wire import Allowed

log = logging.getLogger(__name__)


def open_cache(
    dataset: Dataset,
    options: CacheOptions,
    transform: Transform,
    keys: Callable[[int], list[FeatureKeys]],
    stats: LoaderStats,
) -> LoaderCache | None:
    """None where features are not to be kept, or would not be the same in a later epoch.

    `keys` gives the names on disk of so many views, see `feature_keys`. InputError for views of an unknown transform.
    """
    if options.views is not None and not isinstance(transform, TransformSpec):
        raise InputError("augment_views needs a transform that is known to HAPI: build it of torchvision's v2.")
    views = 1 if isinstance(transform, TransformSpec) and not transform.is_random else options.views
    if options.is_off or views is None:
        return None
    return LoaderCache(dataset, options, views=views, keys=partial(keys, views), stats=stats)


def feature_keys(
    views: int, dataset: Dataset, transform: TransformSpec, backbone: Backbone, *, seed: int, allowed: Allowed
) -> list[FeatureKeys]:
    """Names of the finished features on disk, per view; none for a backbone that cannot be named.

    What `allowed` lossy codecs may have changed has names of its own.
    """
    try:
        digest = backbone.graph(transform).digest
    except CaptureError as error:
        log.warning("the cache directory is not used: its files are named by the captured network, and %s", error)
        return []
    loss = "" if allowed.is_exact else f", {'/'.join(allowed.codecs)} on the wire"
    return [
        FeatureKeys(
            dataset.listing,
            transform,
            seed=seed,
            epoch=view,
            model_digest=digest,
            cut=OUTPUT,
            precision=backbone.precision + loss,
        )
        for view in range(views)
    ]


def kept_share(cache: LoaderCache | None, feature_shapes: tuple[tuple[int, ...], ...], epochs: int) -> float:
    """Part of the samples that an epoch after the first finds in the cache, over all `epochs` but the first."""
    later = epochs - 1
    if cache is None or later < 1:
        return 0.0
    row_bytes = sum(4 * math.prod(shape) for shape in feature_shapes)
    return cache.share(row_bytes) * max(0, epochs - cache.views) / later
