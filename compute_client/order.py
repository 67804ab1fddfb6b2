"""The order in which samples are read: exactly that of `torch.utils.data.DataLoader`, because it *is* one.

A DataLoader over a dataset whose samples are their own indices yields the batches of indices that PyTorch would read.
So every rule about samplers, generators, `drop_last` and mutually exclusive arguments is that of the installed torch,
and the random numbers it draws (a base seed per epoch, then the permutation) are drawn in the same places.
"""

from __future__ import annotations

import base64
import operator
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from hapi.errors import InputError


@dataclass(frozen=True)
class World:
    """Which of the equally sized shares of the global order this process reads."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise InputError(f"rank {self.rank} of world_size {self.size}: the rank must be from 0 to world_size - 1.")

    @classmethod
    def current(cls) -> World:
        """The world of `torch.distributed` when it is initialised, else the world of one; read anew at each use."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls()


class Shard(Sampler[int]):
    """Every `world.size`-th sample of a global order, the same number on every rank.

    The order is made divisible by leaving out the surplus (`drop_last`) or by repeating its beginning, which is the
    rule of `torch.utils.data.DistributedSampler`.
    """

    def __init__(self, whole: Sampler[int], samples: int, world: World, drop_last: bool) -> None:
        self._whole, self._samples, self._world, self._drop_last = whole, samples, world, drop_last

    def __iter__(self) -> Iterator[int]:
        order = list(self._whole)
        total = len(self) * self._world.size
        while len(order) < total:
            order += order[: total - len(order)]
        return iter(order[self._world.rank : total : self._world.size])

    def __len__(self) -> int:
        share, surplus = divmod(self._samples, self._world.size)
        return share if self._drop_last or not surplus else share + 1


class EpochOrder:
    """The batches of sample indices of any epoch.

    With `shuffle` and no `generator`, epoch e is the e-th pass of
    `DataLoader(dataset, shuffle=True, generator=torch.Generator().manual_seed(seed))`: a pure function of the number
    of samples, the seed and e. A `generator`, `sampler` or `batch_sampler` of the user is used live, as PyTorch does.
    With `indices`, it is that of a `torch.utils.data.Subset`: samplers give positions in it.
    Errors about arguments are PyTorch's own, raised as InputError.
    """

    def __init__(
        self,
        samples: int,
        *,
        batch_size: int | None = 1,
        shuffle: bool | None = False,
        sampler: Sampler | Iterable | None = None,
        batch_sampler: Sampler | Iterable | None = None,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        seed: int = 0,
        world: World | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        if world is not None and world.size > 1 and (sampler is not None or batch_sampler is not None):
            raise InputError(
                f"world_size {world.size} with a sampler of your own: both would divide the samples. "
                "Leave out rank and world_size, or the sampler."
            )
        if indices is not None and not len(indices):
            raise InputError("indices is empty: there would be nothing to read.")
        self.samples = samples
        self.seed = seed
        self._indices = None if indices is None else [self._checked(index, "indices has") for index in indices]
        self._length = samples if indices is None else len(indices)
        self.batched = batch_sampler is not None or batch_size is not None
        self._sampler, self._batch_sampler = sampler, batch_sampler
        self._shuffle, self._drop_last, self._batch_size = bool(shuffle), drop_last, batch_size
        self._world = world
        self._generator = generator
        self._own_sampler = sampler is None and batch_sampler is None
        self._from_seed = generator is None and self._shuffle and self._own_sampler
        self._start: tuple[int, torch.Tensor] | None = None  # an epoch and the seeded generator's state before it
        self._loader(World())  # PyTorch checks the arguments

    def __len__(self) -> int:
        """Batches per epoch on this rank; a TypeError, as in PyTorch, when the sampler has no length."""
        return len(self._loader(self.world))

    @property
    def sized(self) -> bool:
        """Whether `len` is known."""
        source = self._batch_sampler if self._batch_sampler is not None else self._sampler
        return source is None or isinstance(source, Sized)

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """The batches of an epoch, drawn lazily; a single index comes as a batch of one when `batch_size` is None."""
        generator = self._seeded(epoch) if self._from_seed else self._generator
        for batch in self._passed(self._loader(self.world, generator)):
            yield self._samples(batch if self.batched else [batch])
        if self._from_seed and generator is not None:
            self._start = epoch + 1, generator.get_state()

    def set_epoch(self, epoch: int) -> None:
        """Tells the user's sampler, when it has a `set_epoch` (DistributedSampler), which epoch comes."""
        for sampler in (self._sampler, self._batch_sampler):
            tell = getattr(sampler, "set_epoch", None)
            if tell is not None:
                tell(epoch)

    @property
    def generator_state(self) -> str | None:
        """State of the user's generator (base64), or None when the order follows from the seed."""
        if self._generator is None:
            return None
        return base64.b64encode(self._generator.get_state().numpy().tobytes()).decode()

    @generator_state.setter
    def generator_state(self, state: str | None) -> None:
        if self._generator is None or state is None:
            return
        try:
            values = bytearray(base64.b64decode(state, validate=True))
            self._generator.set_state(torch.frombuffer(values, dtype=torch.uint8))
        except (ValueError, RuntimeError) as error:
            raise InputError(f"loader state: its generator state is damaged ({error}). Use an intact state.") from error

    def _seeded(self, epoch: int) -> torch.Generator:
        """A generator at the beginning of an epoch, brought there by really drawing the epochs before it."""
        generator = torch.Generator().manual_seed(self.seed)
        first, state = self._start or (0, generator.get_state())
        if first <= epoch:
            generator.set_state(state)
        else:
            first = 0
        for _ in range(first, epoch):
            deque(DataLoader(_Indices(self._length), self._length, True, generator=generator, collate_fn=_as_is), 0)
        self._start = epoch, generator.get_state()
        return generator

    def _loader(self, world: World, generator: torch.Generator | None = None) -> DataLoader:
        sampler, shuffle = self._sampler, self._shuffle
        dataset = _Indices(self._length)
        if self._own_sampler and world.size > 1:
            whole = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
            sampler, shuffle = Shard(whole, self._length, world, self._drop_last), False
        try:
            return DataLoader(
                dataset,
                batch_size=self._batch_size,
                shuffle=shuffle,
                sampler=sampler,
                batch_sampler=self._batch_sampler,
                drop_last=self._drop_last,
                generator=generator,
                collate_fn=_as_is,
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"{error} (arguments as of torch.utils.data.DataLoader)") from error

    def _passed(self, loader: DataLoader) -> Iterator[Any]:
        """What a pass over the loader gives. PyTorch's own samplers are asked themselves, which takes half the time."""
        begun = iter(loader)  # draws its random numbers
        sampler = loader.batch_sampler if self.batched else loader.sampler
        is_lazy = self._own_sampler and isinstance(loader.sampler, RandomSampler | SequentialSampler)
        return iter(sampler) if is_lazy and sampler is not None else begun

    @property
    def world(self) -> World:
        """The world whose share is read; without a given one, asked anew each time."""
        if self._world is not None:
            return self._world
        return World.current() if self._own_sampler else World()

    def _samples(self, positions: Any) -> list[int]:
        if not self._own_sampler:
            if not isinstance(positions, Iterable):  # PyTorch's loader passes on whatever a batch_sampler gives
                raise InputError(
                    f"the batch_sampler gave {positions!r}, not a batch. Pass it as sampler=, with a batch_size."
                )
            return [self._sample(position) for position in positions]
        if self._indices is None:  # PyTorch's own samplers stay within bounds
            return list(positions)
        return [self._indices[position] for position in positions]

    def _sample(self, position: Any) -> int:
        if self._indices is None:
            return self._checked(position, "the sampler asked for")
        number = _whole(position, "the sampler asked for")
        if not 0 <= number < self._length:
            raise InputError(f"the sampler asked for position {number}, but indices has {self._length} entries.")
        return self._indices[number]

    def _checked(self, index: Any, who: str) -> int:
        number = _whole(index, who)
        if not 0 <= number < self.samples:
            raise InputError(
                f"{who} sample {number}, but the dataset has {self.samples} samples "
                f"(0 to {self.samples - 1}). Choose the samples for this dataset."
            )
        return number


class _Indices(Dataset[int]):
    """A dataset whose samples are their own indices; a whole batch is fetched at once."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> int:
        return index

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


def _as_is(value: Any) -> Any:
    return value


def _whole(value: Any, who: str) -> int:
    """A sample's number as a Python integer; InputError for what only looks like one: 1.7, or an entry of a mask."""
    try:
        if not isinstance(value, bool) and getattr(value, "dtype", None) is not torch.bool:
            return operator.index(value)
    except TypeError:
        pass
    hint = ""
    if isinstance(value, list | tuple):
        hint = " A sampler of whole batches is passed as batch_sampler=."
    elif isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        hint = " Of a mask, pass the positions where it is true."
    raise InputError(f"{who} {value!r}, which is not the whole number of a sample.{hint}")
