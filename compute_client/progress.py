"""Who is told how training goes: nobody, or a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.markup import escape

from hapi.units import format_seconds

if TYPE_CHECKING:
    from rich.progress import TaskID

    from hapi.plan import Plan


class Progress(Protocol):
    """Who wants to be told how training goes."""

    def begins(self, plan: Plan) -> None: ...

    def epoch_begins(self, epoch: int, batches: int) -> None: ...

    def batch_done(self, epoch: int, loss: float, samples: int) -> None: ...

    def epoch_done(self, epoch: int, loss: float, accuracy: float | None, seconds: float) -> None: ...


class Silent:
    """Progress that nobody looks at."""

    def begins(self, plan: Plan) -> None:
        pass

    def epoch_begins(self, epoch: int, batches: int) -> None:
        pass

    def batch_done(self, epoch: int, loss: float, samples: int) -> None:
        pass

    def epoch_done(self, epoch: int, loss: float, accuracy: float | None, seconds: float) -> None:
        pass


class TerminalProgress:
    """Progress as bars on standard error; nothing but lines when that is no terminal."""

    def __init__(self, out: Console, epochs: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._epochs = epochs
        self._out = out
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self._task: TaskID | None = None

        self._planning = out.status("planning ...")

    def __enter__(self) -> TerminalProgress:
        self._planning.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._planning.stop()
        self._bars.stop()

    def begins(self, plan: Plan) -> None:
        self._planning.stop()
        self._out.print(escape(str(plan)), soft_wrap=True)
        self._bars.start()

    def epoch_begins(self, epoch: int, batches: int) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(f"epoch {epoch + 1}/{self._epochs}", total=batches, loss="")

    def batch_done(self, epoch: int, loss: float, samples: int) -> None:
        if self._task is not None:
            self._bars.update(self._task, advance=1, loss=f"loss {loss:.4f}")

    def epoch_done(self, epoch: int, loss: float, accuracy: float | None, seconds: float) -> None:
        validated = "" if accuracy is None else f", validation accuracy {accuracy:.1%}"
        self._out.print(f"epoch {epoch + 1}/{self._epochs}: loss {loss:.4f}{validated}, {format_seconds(seconds)}")
