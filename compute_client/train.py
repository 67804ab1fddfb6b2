"""Training a head on features: the whole job of transfer learning, with rules that anyone can repeat."""

from __future__ import annotations

import math
import os
import time
from typing import Literal

import torch
from torch import nn

from compute_client.head import HIDDEN, HeadKind, build_head, check_kind, save_head
from compute_client.loader import DataLoader
from compute_client.progress import Progress, Silent
from compute_client.result import TrainResult, peak_rss_bytes
from hapi.errors import InputError

OptimizerName = Literal["sgd", "adam"]
LEARNING_RATES: dict[str, float] = {"sgd": 0.01, "adam": 0.001}
MOMENTUM = 0.9
COUNTED = ("bytes_received", "requests", "retries", "failed_samples", "cached_samples")
STAGES = ("waiting", "suffix", "decode")


class HeadTrainer:
    """Trains a classifier on the features that a loader yields.

    Everything follows from the loader's seed, by these rules:

    - *Split*: of n samples, `round(n * val_split)` are held out for validation: the first ones of
      `torch.randperm(n, generator=torch.Generator().manual_seed(seed))`. Both parts are then sorted.
    - *Order*: the training part is read as by `DataLoader(Subset(dataset, part), batch_size, shuffle=True,
      generator=torch.Generator().manual_seed(seed))` in consecutive epochs, the last short batch included.
      Validation is in order, with the same batch size.
    - *Head*: see `build_head`: PyTorch's own initialisation after `torch.manual_seed(seed)`.
    - *Optimiser*: `sgd` is `torch.optim.SGD(lr=0.01, momentum=0.9)`, `adam` is `torch.optim.Adam(lr=0.001)`, both with
      `weight_decay` (default 0); the learning rate is constant.
    - *Step*: mean cross-entropy of a batch, one step per batch. An epoch's loss is the mean over samples of the
      losses at which they were trained. Validation comes after each epoch; accuracy is the part of samples whose
      largest logit is their label.
    """

    def __init__(
        self,
        loader: DataLoader,
        *,
        epochs: int = 5,
        head: HeadKind = "linear",
        hidden: int = HIDDEN,
        optimizer: OptimizerName = "sgd",
        lr: float | None = None,
        weight_decay: float = 0.0,
        val_split: float = 0.2,
    ) -> None:
        """`loader` gives dataset, backbone, batch size and seed; its own order and sampler are not used.

        InputError for a dataset without labels, and for a split that leaves nothing to train on.
        """
        if not loader.classes:
            raise InputError(
                f"{loader.dataset.uri}: has no labels to train on. Use one folder per class, or a list with a column "
                "'label'."
            )
        check_kind(head)
        if epochs < 1 or hidden < 1 or weight_decay < 0:
            raise InputError("epochs and hidden must be at least 1, weight_decay not negative.")
        if optimizer not in LEARNING_RATES:
            raise InputError(f"optimizer {optimizer!r}: say one of {', '.join(LEARNING_RATES)}.")
        if lr is not None and not (0 < lr < math.inf):
            raise InputError(f"learning rate {lr}: must be above 0.")
        self.train_indices, self.val_indices = split_indices(loader.samples, val_split, loader.seed)
        self._loader, self.epochs = loader, epochs
        self._kind, self._hidden = head, hidden
        self._optimizer, self._weight_decay = optimizer, weight_decay
        self._lr = LEARNING_RATES[optimizer] if lr is None else lr
        batch_size = loader.batch_size or 1
        self._train = loader.subset(self.train_indices, batch_size=batch_size, shuffle=True)
        self._val = loader.subset(self.val_indices, batch_size=batch_size) if self.val_indices else None
        self.head: nn.Module | None = None

    def fit(self, progress: Progress | None = None) -> TrainResult:
        """Trains from the beginning; the head is then in `self.head`, in eval mode, on the loader's device."""
        progress = Silent() if progress is None else progress
        loader = self._loader
        started = time.perf_counter()
        before = loader.stats.to_json()
        loader.warm_up()
        first_plan = loader.plan
        progress.begins(first_plan)
        head = build_head(
            self._kind, loader.feature_shape, len(loader.classes), seed=loader.seed, hidden=self._hidden
        ).to(loader.device)
        optimizer = self._make_optimizer(head)
        setup_seconds = time.perf_counter() - started
        losses: list[float] = []
        accuracies: list[float] = []
        epoch_seconds: list[float] = []
        for epoch in range(self.epochs):
            begun = time.perf_counter()
            progress.epoch_begins(epoch, len(self._train))
            losses.append(self._train_epoch(head, optimizer, epoch, progress))
            epoch_seconds.append(time.perf_counter() - begun)
            accuracy = self._validate(head)
            accuracies += [] if accuracy is None else [accuracy]
            progress.epoch_done(epoch, losses[-1], accuracy, epoch_seconds[-1])
        self.head = head.eval()
        after = loader.stats.to_json()
        return TrainResult(
            samples=loader.samples,
            train_samples=len(self.train_indices),
            val_samples=len(self.val_indices),
            epochs=self.epochs,
            seconds=time.perf_counter() - started,
            setup_seconds=setup_seconds,
            epoch_seconds=epoch_seconds,
            losses=losses,
            final_loss=losses[-1],
            accuracies=accuracies,
            accuracy=accuracies[-1] if accuracies else None,
            peak_rss_bytes=peak_rss_bytes(),
            classes=list(loader.classes),
            stages={name: after[f"{name}_seconds"] - before[f"{name}_seconds"] for name in STAGES},
            plan=loader.plan,
            first_plan=first_plan,
            **{key: after[key] - before[key] for key in COUNTED},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the trained head as safetensors, and beside it, as JSON, its classes, model, transform and rules."""
        if self.head is None:
            raise InputError("nothing to save: call fit() first.")
        loader = self._loader
        save_head(
            self.head,
            path,
            {
                "head": self._kind,
                "hidden": self._hidden,
                "feature_shape": list(loader.feature_shape),
                "classes": list(loader.classes),
                "model": loader.model,
                "transform": loader.transform,
                "data": loader.dataset.uri,
                "order_digest": loader.dataset.order_digest,
                "seed": loader.seed,
                "epochs": self.epochs,
                "optimizer": {"name": self._optimizer, "lr": self._lr, "weight_decay": self._weight_decay},
            },
        )

    def _make_optimizer(self, head: nn.Module) -> torch.optim.Optimizer:
        if self._optimizer == "adam":
            return torch.optim.Adam(head.parameters(), lr=self._lr, weight_decay=self._weight_decay)
        return torch.optim.SGD(head.parameters(), lr=self._lr, momentum=MOMENTUM, weight_decay=self._weight_decay)

    def _train_epoch(self, head: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, progress: Progress) -> float:
        head.train()
        self._train.set_epoch(epoch)
        total = torch.zeros((), dtype=torch.float64, device=self._loader.device)
        samples = 0
        for features, labels in self._train:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(head(features), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach().double() * len(labels)
            samples += len(labels)
            progress.batch_done(epoch, float(total) / samples, samples)
        if not samples:
            raise InputError(f"{self._loader.dataset.uri}: not one training sample could be read. Check the files.")
        return float(total) / samples

    @torch.no_grad()
    def _validate(self, head: nn.Module) -> float | None:
        if self._val is None:
            return None
        head.eval()
        right = total = 0
        for features, labels in self._val:
            right += int((head(features).argmax(1) == labels).sum())
            total += len(labels)
        return right / total if total else None


def split_indices(samples: int, val_split: float, seed: int) -> tuple[list[int], list[int]]:
    """(training, validation) sample indices by the rule of HeadTrainer; InputError if nothing is left to train on."""
    if not 0 <= val_split < 1:
        raise InputError(f"val_split {val_split}: say a part from 0 to below 1, for example 0.2.")
    held_out = round(samples * val_split)
    if held_out >= samples:
        raise InputError(f"val_split {val_split} of {samples} samples leaves none to train on. Make it smaller.")
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held_out:]), sorted(order[:held_out])
