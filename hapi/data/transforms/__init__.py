"""Transforms as data: described once, run anywhere, equal to the last bit."""

from hapi.data.transforms.describe import describe_transform
from hapi.data.transforms.draws import sample_seed
from hapi.data.transforms.spec import TransformSpec, load_sample

__all__ = ["TransformSpec", "describe_transform", "load_sample", "sample_seed"]
