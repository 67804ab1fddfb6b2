"""A transform as data: what turns an image into a model's input, written down so that any tier does the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from hapi.data.images import MAX_PIXELS, Window, decode_image
from hapi.data.transforms.bounds import check_pixels
from hapi.data.transforms.cropping import cropped_resize
from hapi.data.transforms.draws import SeededDraws, sample_seed
from hapi.data.transforms.levels import level_table, levels_begin, look_up
from hapi.data.transforms.parts import Box, part_read
from hapi.data.transforms.steps import FAILURES, MAX_STEPS, Step, step_from_json
from hapi.errors import TransformError


class TransformSpec:
    """A pipeline of known transforms. Immutable, picklable, and safe to call from several threads.

    Calling it gives exactly what the torchvision (or Hugging Face) code that it describes gives, bit for bit; if some
    of it is random, what that code gives right after `torch.manual_seed(sample_seed(seed, epoch, index))`.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps = tuple(steps)
        if not 1 <= len(self.steps) <= MAX_STEPS:
            raise TransformError(f"transform: {len(self.steps)} steps. Give 1 to {MAX_STEPS}.")
        self._cropped_resize = cropped_resize(self.steps)
        self._levels_begin = levels_begin(self.steps)
        self._tables: dict[str, np.ndarray | None] = {}

    @property
    def is_random(self) -> bool:
        return any(step.is_random for step in self.steps)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the JSON form, every argument written out: equal pipelines have equal digests."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> list[dict[str, Any]]:
        return [step.to_json() for step in self.steps]

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Reads the JSON form; TransformError for unknown names or arguments, wrong types and excessive sizes."""
        if not isinstance(document, list) or len(document) > MAX_STEPS:
            raise TransformError(f"transform: must be a list of 1 to {MAX_STEPS} steps.")
        return cls(step_from_json(step) for step in document)

    def __call__(self, image: Image.Image, *, seed: int = 0, epoch: int = 0, index: int = 0) -> torch.Tensor:
        """The model's input: float32 of shape (C, H, W), contiguous. TransformError names the step that failed."""
        with _on_cpu():
            value = self._run(image, self._draws(seed, epoch, index))
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.ndim != 3:
            got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else "an image"
            raise TransformError(
                f"transform ends with {got}, a model needs float32 of shape (C, H, W). "
                "Add v2.ToImage() and v2.ToDtype(torch.float32, scale=True)."
            )
        return value.as_subclass(torch.Tensor).contiguous()

    def part_read(self, width: int, height: int, *, seed: int = 0, epoch: int = 0, index: int = 0) -> Box:
        """A part of an image of this size, beyond which this sample's pipeline reads nothing."""
        with _on_cpu():
            return part_read(self.steps, width, height, self._draws(seed, epoch, index))

    def _draws(self, seed: int, epoch: int, index: int) -> AbstractContextManager[Any]:
        return SeededDraws(sample_seed(seed, epoch, index)) if self.is_random else nullcontext()

    def _run(self, image: Image.Image, draws: AbstractContextManager[Any]) -> Any:
        value: Any = image
        pair, done = self._cropped_resize, -1
        for position, step in enumerate(self.steps):
            if position == done:
                continue
            if position == self._levels_begin and (table := self._table(value)) is not None:
                return look_up(value, table)
            check_pixels(step, value, MAX_PIXELS)
            if pair and position == pair.resize_at and (cropped := pair(value)) is not None:
                value, done = cropped, pair.crop_at
                continue
            try:
                with draws if step.is_random else nullcontext():
                    value = step.transform(value)
            except FAILURES as error:
                raise TransformError(
                    f"transform {step.name} failed on an image of {image.width}x{image.height} pixels: {error}."
                ) from error
        return value

    def _table(self, image: Any) -> np.ndarray | None:
        """Of the last steps, for images like this one; None if it is no image any more, or they need more than levels.

        Not locked: threads that ask at once each make the same."""
        if not isinstance(image, Image.Image):
            return None
        if image.mode not in self._tables:
            self._tables[image.mode] = level_table(self.steps[self._levels_begin :], image.mode)
        return self._tables[image.mode]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TransformSpec) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"TransformSpec({' -> '.join(step.name for step in self.steps)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_json, (self.to_json(),)


def _on_cpu() -> AbstractContextManager[Any]:
    """Whatever the user's default device: images are made, and numbers drawn, on the CPU."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def load_sample(
    data: bytes, spec: TransformSpec, *, seed: int = 0, epoch: int = 0, index: int = 0, window: Window | None = None
) -> torch.Tensor:
    """Decodes one stored object and transforms it; ImageError or TransformError say why this sample cannot be used.

    `window` says where in the stored picture `data` lies, if it is what `hapi.data.trimming` left of it.
    """
    return spec(decode_image(data, window=window), seed=seed, epoch=epoch, index=index)
