"""`hapi top`: what it shows as golden text, how it follows a server, and how it ends."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from itertools import islice

import httpx
import pytest
from rich.console import Console

import profiler.remote
from hapi import cli
from hapi.errors import BusyError, ForbiddenError, ServerUnreachableError
from hapi.wire.protocol import PrefixStatus, ServerStatus, TenantStatus
from profiler.remote import ServerClient
from profiler.top import View, Watcher, screen, watch


def status(**values: object) -> ServerStatus:
    known = {
        "version": "0.1.0",
        "device": "cpu",
        "budget_bytes": 2_000_000_000,
        "used_bytes": 500_000_000,
        "requests_active": 3,
        "requests_queued": 2,
        "samples_done": 1200,
        "models": ["ab" * 32],
        "roots": ["file:///photos"],
        "backlog_seconds": 12.5,
        "queue_bytes": 256_000_000,
        "rss_bytes": 900_000_000,
        "prefixes": [prefix(), prefix(cut="output", batch=4, reason="recovering", out_of_memory=2, images_per_s=0.0)],
        "tenants": [tenant("bob", 0, 0, device_seconds=9.0), tenant("alice", 3, 2, failed=1)],
    }
    return ServerStatus.model_validate(known | values)


def prefix(**values: object) -> PrefixStatus:
    known = {
        "model": "ab" * 32,
        "model_name": "resnet[50]",
        "cut": "layer3.5",
        "device": "cpu",
        "engine": "eager",
        "batch": 16,
        "reason": "knee",
        "images_per_s": 41.25,
        "samples": 800,
        "waiting": 7,
        "weight_bytes": 94_000_000,
        "predicted_peak_bytes": 310_000_000,
        "measured_peak_bytes": 305_000_000,
        "out_of_memory": 0,
    }
    return PrefixStatus.model_validate(known | values)


def tenant(name: str, active: int, waiting: int, **values: object) -> TenantStatus:
    known = {
        "share": 1.0,
        "samples": 600,
        "failed": 0,
        "shared": 20,
        "queue_seconds": 0.25,
        "device_seconds": 4.5,
        "held_bytes": 12_000_000,
    }
    return TenantStatus.model_validate({"name": name, "active": active, "waiting": waiting} | known | values)


def text(view: View, width: int) -> str:
    out = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    out.print(screen(view, width))
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines())


def test_the_screen_shows_server_prefixes_and_tenants() -> None:
    assert text(View("http://storage:8470", status(), 52.5), 120) == WIDE


def test_a_narrow_terminal_shortens_names_but_no_number_and_no_title() -> None:
    long = [prefix(model_name="mobilenet_v3_small" * 2, cut="features.9.squeeze_activation", images_per_s=1234.5)]
    named = [tenant("carol-with-a-rather-long-name-indeed", 1, 1, samples=1_234_567)]
    shown = text(View("http://storage:8470", status(prefixes=long, tenants=named), 2233.4), 80)
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("batch", "because", "images/s", "1234.5", "waiting", "active", "failed", "1234567", "carol", "feat"):
        assert word in shown
    assert len(shown.splitlines()) == 3 + 2 * 5 + 1


def test_what_does_not_fit_into_the_height_is_counted() -> None:
    many = [prefix(cut=f"layer{number}") for number in range(30)]
    crowd = [tenant(f"tenant-{number}", 1, 0) for number in range(40)]
    out = Console(file=io.StringIO(), width=80, color_system=None, legacy_windows=False)
    out.print(screen(View("http://s", status(prefixes=many, tenants=crowd), 1.0), 80, 24))
    shown = out.file.getvalue()
    assert len(shown.rstrip().splitlines()) <= 24
    assert "prefixes, 5 of 30" in shown
    assert "tenants, 6 of 40" in shown
    few = text(View("http://s", status(prefixes=many[:2], tenants=crowd[:3]), 1.0), 80)
    assert " of 2\n" not in few


def test_a_narrow_terminal_still_shows_what_matters() -> None:
    shown = text(View("http://storage:8470", status(), None), 80)
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("knee", "recovering", "alice", "layer3.5", "12.5 s", "- samples/s"):
        assert word in shown
    assert "measured" not in shown


def test_an_idle_server_says_so() -> None:
    shown = text(View("http://s", status(prefixes=[], tenants=[]), 0.0), 120)
    assert "nothing was computed yet" in shown
    assert "tenants" not in shown


class Server:
    """Answers what it is given in turn; errors are raised."""

    def __init__(self, *answers: ServerStatus | Exception) -> None:
        self.answers = list(answers)

    def __call__(self) -> ServerStatus:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def ticking() -> Callable[[], float]:
    seconds = iter(range(1000))
    return lambda: float(next(seconds))


def test_a_server_that_goes_away_is_shown_and_comes_back() -> None:
    gone = ServerUnreachableError("no storage server answers at http://s.")
    server = Server(status(), status(samples_done=1250), gone, gone, status(samples_done=0), status(samples_done=10))
    waits: list[float] = []
    views = list(islice(watch(Watcher("http://s", server, ticking()), 2.0, waits.append), 6))
    assert [view.samples_per_s for view in views] == [None, 50.0, None, None, None, 10.0]
    assert [view.silent_seconds for view in views] == [0.0, 0.0, 1.0, 2.0, 0.0, 0.0]
    assert views[3].status == status(samples_done=1250)
    shown = text(views[3], 120)
    assert "no answer for 2 s: no storage server answers at http://s." in shown
    assert "resnet[50]" in shown
    assert "no answer" not in text(views[4], 120)
    assert waits == [2.0] * 5


def test_what_does_not_pass_is_an_error() -> None:
    watcher = Watcher("http://s", Server(BusyError("full."), ForbiddenError("not yours.")), ticking())
    assert watcher.look().trouble == "full."
    with pytest.raises(ForbiddenError):
        watcher.look()


def run(monkeypatch: pytest.MonkeyPatch, handle: Callable[[httpx.Request], httpx.Response], *arguments: str) -> int:
    class Client(ServerClient):
        def __init__(self, url: str, token: str | None = None, **options: object) -> None:
            super().__init__(url, token, **options, transport=httpx.MockTransport(handle))

    monkeypatch.setattr(profiler.remote, "ServerClient", Client)
    monkeypatch.setattr(sys, "argv", ["hapi", "top", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def answers(request: httpx.Request) -> httpx.Response:
    assert request.url.path == "/v1/status"
    return httpx.Response(200, json=status().model_dump())


def test_one_look_as_text_and_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, answers, "--once") == 0
    assert "resnet[50]" in capsys.readouterr().out
    assert run(monkeypatch, answers, "--json") == 0
    assert ServerStatus.model_validate(json.loads(capsys.readouterr().out)) == status()


def test_ctrl_c_leaves_cleanly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    out = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr("profiler.commands.console", lambda as_json: out)
    monkeypatch.setattr("profiler.top.time.sleep", interrupt)
    monkeypatch.setattr(watch, "__defaults__", (interrupt,))
    assert run(monkeypatch, answers) == 0
    shown = out.file.getvalue()
    assert "resnet[50]" in shown
    assert "interrupted" not in capsys.readouterr().err
    assert shown.index("\x1b[?1049h") < shown.index("\x1b[?1049l")  # the alternate screen was left


def test_a_wrong_address_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert run(monkeypatch, refuse) == 1
    assert "no storage server answers at http://127.0.0.1:8470" in capsys.readouterr().err


WIDE = """\
HAPI storage server http://storage:8470  cpu, float32, version 0.1.0
memory ━━━━━━                   500 MB of 2 GB, queues up to 256 MB, resident 900 MB
requests 3 active, 2 waiting, backlog 12.5 s, 52.5 samples/s, 1200 in all
prefixes

 model        cut        engine   batch   because      images/s   waiting     peak   measured   OOM
 ──────────────────────────────────────────────────────────────────────────────────────────────────
 resnet[50]   layer3.5   eager       16   knee             41.2         7   310 MB     305 MB     0
 resnet[50]   output     eager        4   recovering          -         7   310 MB     305 MB     2

tenants

 tenant     share   active   waiting   samples   failed     wait   device   shared    held
 ─────────────────────────────────────────────────────────────────────────────────────────
 alice          1        3         2       600        1   250 ms    4.5 s       20   12 MB
 bob            1        0         0       600        0   250 ms      9 s       20   12 MB
"""
