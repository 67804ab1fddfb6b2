"""`hapi.prepare`: one added line in a training script that exists.

It reads from a PyTorch DataLoader and a partly frozen model what hapi.DataLoader and hapi.split want to know.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.utils.data as torch_data
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate, default_convert

from compute_client.dataset import resolve
from compute_client.loader import DataLoader
from hapi.errors import InputError, ManifestError
from hapi.model.boundary import split
from hapi.model.boundary.parts import Backbone, Head
from hapi.model.wrappers import unwrapped
from profiler.remote import ServerClient

_PICTURE = (640, 480)  # what a transform is tried on, to learn the shape of the model's input


@dataclass(frozen=True)
class _Division:
    """How a model was divided, and for which request: it may have been changed or frozen otherwise since."""

    at: str | None
    state: Hashable
    backbone: Backbone
    head: Head


_divided: WeakKeyDictionary[nn.Module, _Division] = WeakKeyDictionary()  # by model: all phases share one head
_backbones: WeakKeyDictionary[Head, tuple[str | None, Backbone]] = WeakKeyDictionary()  # by head, with its `at`


def prepare(
    loader: torch_data.DataLoader[Any],
    model: nn.Module,
    server: str | ServerClient | None = None,
    *,
    data: str | None = None,
    at: str | None = None,
    **options: Any,
) -> tuple[DataLoader, nn.Module]:
    """From (loader of images, model) to (loader of features, head): the loop around them stays as it is.

        loader, model = hapi.prepare(loader, model, server="http://storage:8470", data="s3://photos/train")

    `loader` reads an ImageFolder, or Subsets of one (random_split), by any sampler; its dataset, transform, sampler,
    batch size, `drop_last`, `collate_fn`, `pin_memory`, `timeout` and generator are taken over, so samples and labels
    come in the same order. `num_workers` become threads; what only concerns worker processes has nothing to do (with
    `persistent_workers` PyTorch draws fewer seeds, and later epochs another order than without; here it is without).
    Random transforms follow from torch's seed (or that of the loader's generator) at this moment, per epoch and sample.

    `model` is divided by hapi.split(model, at). Its own parameters train, so an optimiser made before or after is
    right. Prepare the loader of each phase with the model, or with the head that another call gave: all get one head.
    What torch.compile, DataParallel or DistributedDataParallel put around the model is looked through, see hapi.split;
    a head that was wrapped in one of them since is given back so.
    The frozen part computes as in eval mode at all times. (A script that calls `model.train()` on a partly frozen model
    has its frozen BatchNorm layers use the statistics of each batch, and drift; here they stand still.)

    `data` names where the same files lie for the server; without it, the ImageFolder's own path. The server's list of
    files and labels must be equal to the local one. `options` are further arguments of hapi.DataLoader (`pushdown`,
    `token`, `codec`, `seed`, `epochs`, ...).

    Raises InputError for what HAPI cannot take over exactly, ManifestError if the files differ, and the errors of
    hapi.split and hapi.DataLoader.
    """
    if not isinstance(loader, torch_data.DataLoader):
        raise InputError(
            f"prepare: {type(loader).__name__} is not a torch.utils.data.DataLoader. Pass the loader first."
        )
    folder, indices = _folder_of(loader.dataset)
    _check_folder(folder)
    backbone, head = _divide(model, at, folder.transform)
    features = DataLoader(
        folder if data is None else data,
        backbone=backbone,
        **{"transform": folder.transform, "server": server, **_arguments(loader, indices), **options},
    )
    if data is not None:
        _check_same_files(features, folder, data)
    return features, head


# -- the dataset ---------------------------------------------------------------------------------------------


def _folder_of(dataset: Any) -> tuple[Any, list[int] | None]:
    """The ImageFolder behind Subsets, and which of its samples they leave, in their order (None: all)."""
    from torchvision.datasets import ImageFolder

    indices: list[int] | None = None
    while type(dataset) is torch_data.Subset:
        own = [int(index) for index in dataset.indices]
        indices = own if indices is None else [own[index] for index in indices]
        dataset = dataset.dataset
    if not isinstance(dataset, ImageFolder):
        raise InputError(
            f"prepare: the loader reads a {type(dataset).__name__}, not a torchvision ImageFolder or a Subset of one. "
            "Build hapi.DataLoader(...) over the folder, bucket or list of files, and divide the model with hapi.split."
        )
    return dataset, indices


def _check_folder(folder: Any) -> None:
    from torchvision.datasets import DatasetFolder
    from torchvision.datasets.folder import default_loader

    name = f"{type(folder).__name__}({str(folder.root)!r})"
    if type(folder).__getitem__ is not DatasetFolder.__getitem__:
        raise InputError(
            f"prepare: {name} has a __getitem__ of its own, so its samples are not (image, class). Use ImageFolder."
        )
    if folder.loader is not default_loader:
        raise InputError(
            f"prepare: {name} has a loader of its own, which HAPI cannot run elsewhere. Use ImageFolder's default."
        )
    if folder.transform is None:
        raise InputError(f"prepare: {name} has no transform, so it yields no tensors. Give it one.")
    if folder.target_transform is not None:
        raise InputError(
            f"prepare: {name} has a target_transform; HAPI yields the class indices as they are. Map them in the loop."
        )


def _check_same_files(features: DataLoader, folder: Any, data: str) -> None:
    local, _ = resolve(folder, None)
    if features.dataset.order_digest != local.order_digest:
        counts = f"{features.samples} samples there, {local.samples} here"
        classes = f"classes {_few(features.classes)} there, {_few(local.classes)} here"
        raise ManifestError(
            f"prepare: {data} does not hold the files of {str(folder.root)!r} ({counts}; {classes}), or lists them in "
            "another order. Copy the folder there as it is, or build hapi.DataLoader over that address itself."
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


# -- the loader's arguments ----------------------------------------------------------------------------------


def _arguments(loader: torch_data.DataLoader[Any], indices: list[int] | None) -> dict[str, Any]:
    """What hapi.DataLoader is told. Samplers are used live: they draw from the generators that PyTorch's would."""
    if loader.worker_init_fn is not None:
        warnings.warn(
            "worker_init_fn has nothing to do: HAPI has no worker processes, and seeds transforms per sample",
            stacklevel=3,
        )
    generator = loader.generator
    seed = torch.initial_seed() if generator is None else generator.initial_seed()
    arguments: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "generator": generator,
        "seed": seed % 2**63,
    }
    if loader.collate_fn is not (default_convert if loader.batch_sampler is None else default_collate):
        arguments["collate_fn"] = loader.collate_fn
    if loader.batch_size is None and loader.batch_sampler is not None:  # the user's own
        return arguments | {"batch_sampler": _mapped(loader.batch_sampler, indices)}
    return arguments | {
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "sampler": _mapped(loader.sampler, indices),
    }


def _mapped(sampler: Any, indices: list[int] | None) -> Any:
    if indices is None:
        return sampler
    chosen = SizedChosen if isinstance(sampler, Sized) else Chosen
    return chosen(sampler, indices)


class Chosen(torch_data.Sampler[Any]):
    """A sampler of a Subset, put in indices of the whole dataset; batches of indices likewise."""

    def __init__(self, sampler: Iterable[Any], indices: Sequence[int]) -> None:
        self.sampler, self.indices = sampler, indices

    def __iter__(self) -> Iterator[Any]:
        for drawn in self.sampler:
            if isinstance(drawn, list | tuple):
                yield [self.indices[int(index)] for index in drawn]
            else:
                yield self.indices[int(drawn)]

    def set_epoch(self, epoch: int) -> None:
        """Tells the sampler, if it wants to know (DistributedSampler)."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


class SizedChosen(Chosen):
    """The same for a sampler that has a length."""

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]


# -- the model -----------------------------------------------------------------------------------------------


def _divide(given: nn.Module, at: str | None, transform: Any) -> tuple[Backbone, nn.Module]:
    model = unwrapped(given)
    if isinstance(model, Head):
        known_at, backbone = _backbones.get(model, (None, None))
        if backbone is None:
            raise InputError(
                "prepare: this head was not made by hapi.prepare in this process (or is a copy), so its backbone is "
                "not known. Pass the whole model."
            )
        if at is not None and at != known_at:
            raise InputError(f"prepare: this head begins after {known_at!r}, not {at!r}. Pass the whole model.")
        return backbone, given  # wrapped as it may be by now
    if not isinstance(model, nn.Module):
        raise InputError(f"prepare: {type(model).__name__} is not a torch.nn.Module. Pass the model second.")
    state = _state(model)
    known = _divided.get(model)
    if known is None or (known.at, known.state) != (at, state):
        known = _Division(at, state, *split(given, at, example=_example(model, transform)))
        _divided[model] = known
        _backbones[known.head] = at, known.backbone
    return known.backbone, known.head


def _state(model: nn.Module) -> Hashable:
    """What a division follows from: changes when modules or parameters are exchanged, and when others are frozen."""
    parameters = tuple((name, id(parameter), parameter.requires_grad) for name, parameter in model.named_parameters())
    return parameters, tuple((name, id(module)) for name, module in model.named_modules())


def _example(model: nn.Module, transform: Any) -> Tensor:
    """Two inputs as the transform makes them, from a plain picture; the random generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        try:
            one = transform(Image.new("RGB", _PICTURE, (127, 127, 127)))
        except Exception as error:
            raise InputError(
                f"prepare: the dataset's transform fails on a plain picture: {type(error).__name__}: {error}."
            ) from error
    if not isinstance(one, Tensor):
        raise InputError(
            f"prepare: the dataset's transform gives a {type(one).__name__}, not a tensor. End it with ToTensor()."
        )
    parameter = next(model.parameters(), one)
    return torch.stack([one, one]).to(parameter.device)
