"""The order of samples equals that of PyTorch's own loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Dataset, DistributedSampler, RandomSampler, Subset, WeightedRandomSampler

from compute_client.order import EpochOrder, World
from hapi.errors import InputError

EPOCHS = 4


class Plain(Dataset[int]):
    """An ordinary map-style dataset, fetched sample by sample as users' datasets are."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> int:
        return index


def torch_epochs(loader: TorchLoader, epochs: int = EPOCHS) -> list[list[list[int]]]:
    return [[batch.tolist() for batch in loader] for _ in range(epochs)]


@pytest.mark.parametrize("samples", [1, 7, 64, 65])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("drop_last", [False, True])
def test_shuffled_epochs_equal_those_of_a_seeded_torch_loader(samples: int, batch_size: int, drop_last: bool) -> None:
    generator = torch.Generator().manual_seed(11)
    reference = TorchLoader(Plain(samples), batch_size, True, drop_last=drop_last, generator=generator)
    order = EpochOrder(samples, batch_size=batch_size, shuffle=True, drop_last=drop_last, seed=11)
    assert [list(order.batches(epoch)) for epoch in range(EPOCHS)] == torch_epochs(reference)
    assert len(order) == len(reference)


def test_an_epoch_is_a_function_of_its_number_alone() -> None:
    straight = EpochOrder(50, batch_size=8, shuffle=True, seed=2)
    epochs = [list(straight.batches(epoch)) for epoch in range(5)]
    jumping = EpochOrder(50, batch_size=8, shuffle=True, seed=2)
    abandoned = jumping.batches(3)
    next(abandoned)
    for epoch in (4, 1, 1, 3, 0, 2):
        assert list(jumping.batches(epoch)) == epochs[epoch]
    assert list(abandoned) == epochs[3][1:]  # two passes at once do not disturb each other


def test_seeds_and_epochs_differ() -> None:
    loaders = [EpochOrder(40, batch_size=40, shuffle=True, seed=seed) for seed in (0, 1)]
    orders = {tuple(next(loader.batches(epoch))) for loader in loaders for epoch in (0, 1)}
    assert len(orders) == 4


def test_a_generator_of_the_user_is_drawn_from_as_torch_does() -> None:
    reference = torch_epochs(TorchLoader(Plain(30), 4, True, generator=torch.Generator().manual_seed(5)))
    generator = torch.Generator().manual_seed(5)
    order = EpochOrder(30, batch_size=4, shuffle=True, generator=generator, seed=99)
    assert [list(order.batches(epoch)) for epoch in range(EPOCHS)] == reference
    other = torch.Generator().manual_seed(5)
    torch_epochs(TorchLoader(Plain(30), 4, True, generator=other))
    assert torch.equal(generator.get_state(), other.get_state())


def test_a_generators_state_brings_its_epoch_back() -> None:
    order = EpochOrder(30, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5))
    list(order.batches(0))
    state = order.generator_state
    second = list(order.batches(1))
    resumed = EpochOrder(30, batch_size=4, shuffle=True, generator=torch.Generator())
    resumed.generator_state = state
    assert list(resumed.batches(1)) == second
    with pytest.raises(InputError, match="damaged"):
        resumed.generator_state = "AAAA"


def test_sequential_reading_leaves_the_global_random_numbers_where_torch_leaves_them() -> None:
    torch.manual_seed(1)
    torch_epochs(TorchLoader(Plain(9), 2))
    expected = torch.rand(1)
    torch.manual_seed(1)
    order = EpochOrder(9, batch_size=2)
    assert [list(order.batches(epoch)) for epoch in range(EPOCHS)] == [[[0, 1], [2, 3], [4, 5], [6, 7], [8]]] * EPOCHS
    assert torch.equal(torch.rand(1), expected)


def test_samplers_and_batch_samplers_are_used_as_given() -> None:
    drawn = WeightedRandomSampler([0.1, 0.9, 0.5], 12, generator=torch.Generator().manual_seed(0))
    reference = torch_epochs(TorchLoader(Plain(3), 5, sampler=drawn))
    drawn = WeightedRandomSampler([0.1, 0.9, 0.5], 12, generator=torch.Generator().manual_seed(0))
    order = EpochOrder(3, batch_size=5, sampler=drawn)
    assert [list(order.batches(epoch)) for epoch in range(EPOCHS)] == reference
    batches = [[2, 0], [1], [0, 1, 2]]
    order = EpochOrder(3, batch_sampler=batches)
    assert list(order.batches(0)) == batches
    assert len(order) == 3


def test_a_sampler_is_told_the_epoch() -> None:
    sampler = DistributedSampler(Plain(10), num_replicas=2, rank=0, shuffle=True)
    order = EpochOrder(10, sampler=sampler)
    order.set_epoch(3)
    assert sampler.epoch == 3


def test_without_batching_indices_come_one_by_one() -> None:
    order = EpochOrder(3, batch_size=None)
    assert list(order.batches(0)) == [[0], [1], [2]]
    assert not order.batched
    assert len(order) == 3


def test_an_endless_sampler_is_read_lazily() -> None:
    class Endless:
        def __iter__(self):
            while True:
                yield from range(3)

    order = EpochOrder(3, batch_size=2, sampler=Endless())
    batches = order.batches(0)
    assert [next(batches) for _ in range(4)] == [[0, 1], [2, 0], [1, 2], [0, 1]]
    assert not order.sized
    with pytest.raises(TypeError):
        len(order)


@pytest.mark.parametrize("samples", [10, 11, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_the_global_order_in_equally_many_batches(samples: int, drop_last: bool) -> None:
    shared = {"batch_size": 2, "shuffle": True, "drop_last": drop_last, "seed": 4}
    whole = next(EpochOrder(samples, batch_size=samples, shuffle=True, seed=4).batches(1))
    orders = [EpochOrder(samples, **shared, world=World(rank, 4)) for rank in range(4)]
    parts = [list(order.batches(1)) for order in orders]
    assert {len(part) for part in parts} == {len(order) for order in orders} == {len(orders[0])}
    read = [index for part in parts for batch in part for index in batch]
    if drop_last:
        assert len(read) == len(set(read))
    else:
        assert set(read) == set(whole)
        assert parts[1][0][0] == whole[1 % samples]


def test_a_subset_is_read_as_torch_reads_one() -> None:
    chosen = [9, 4, 17, 2, 11]
    subset = Subset(Plain(20), chosen)
    reference = torch_epochs(TorchLoader(subset, 2, True, generator=torch.Generator().manual_seed(6)))
    order = EpochOrder(20, batch_size=2, shuffle=True, seed=6, indices=chosen)
    assert [list(order.batches(epoch)) for epoch in range(EPOCHS)] == reference
    assert len(order) == 3
    assert list(EpochOrder(20, batch_size=9, indices=chosen).batches(0)) == [chosen]
    assert list(EpochOrder(20, sampler=[1, 0], indices=chosen).batches(0)) == [[4], [9]]
    with pytest.raises(InputError, match="sample 20"):
        EpochOrder(20, indices=[20])
    with pytest.raises(InputError, match="empty"):
        EpochOrder(20, indices=[])
    with pytest.raises(InputError, match="position 5"):
        list(EpochOrder(20, sampler=[5], indices=chosen).batches(0))


def test_one_rank_of_one_is_the_plain_order() -> None:
    plain = EpochOrder(20, batch_size=3, shuffle=True, seed=1)
    alone = EpochOrder(20, batch_size=3, shuffle=True, seed=1, world=World(0, 1))
    assert list(plain.batches(2)) == list(alone.batches(2))


@pytest.mark.parametrize(
    "arguments",
    [
        {"shuffle": True, "sampler": RandomSampler(Plain(4))},
        {"batch_sampler": [[0]], "drop_last": True},
        {"batch_size": 0},
        {"batch_size": None, "drop_last": True},
        {"sampler": [0], "world": World(0, 2)},
    ],
)
def test_impossible_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(InputError):
        EpochOrder(4, **arguments)


def test_a_sampler_of_another_dataset_is_refused() -> None:
    with pytest.raises(InputError, match=r"sample 9.*4 samples"):
        list(EpochOrder(4, sampler=[0, 9]).batches(0))


@pytest.mark.parametrize("wrong", [1.7, "0", True, torch.tensor(True), torch.tensor(1.0), np.True_, None])
def test_what_only_looks_like_the_number_of_a_sample_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match="not the whole number of a sample"):
        list(EpochOrder(4, sampler=[wrong]).batches(0))
    with pytest.raises(InputError, match="not the whole number of a sample"):
        list(EpochOrder(4, sampler=[wrong], indices=[2, 3]).batches(0))
    with pytest.raises(InputError, match="not the whole number of a sample"):
        EpochOrder(4, indices=[wrong])


def test_numbers_of_samples_may_be_of_numpy_and_torch() -> None:
    chosen = [np.int64(2), torch.tensor(1), np.array(0)]
    assert list(EpochOrder(4, batch_size=3, sampler=chosen).batches(0)) == [[2, 1, 0]]
    assert list(EpochOrder(4, batch_size=3, indices=torch.tensor([3, 2])).batches(0)) == [[3, 2]]
    assert list(EpochOrder(4, batch_sampler=[torch.tensor([1, 3])]).batches(0)) == [[1, 3]]


def test_samplers_and_batch_samplers_in_each_others_place_are_told_theirs() -> None:
    with pytest.raises(InputError, match=r"the sampler asked for \[0, 1\].*batch_sampler="):
        list(EpochOrder(4, batch_size=None, sampler=[[0, 1]]).batches(0))
    with pytest.raises(InputError, match=r"the batch_sampler gave 0.*sampler=, with a batch_size"):
        list(EpochOrder(4, batch_sampler=[0, 1]).batches(0))
    with pytest.raises(InputError, match="a mask"):
        EpochOrder(4, indices=[True, False])


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0)])
def test_impossible_worlds_are_refused(rank: int, size: int) -> None:
    with pytest.raises(InputError):
        World(rank, size)
