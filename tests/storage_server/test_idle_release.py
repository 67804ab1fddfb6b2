"""Memory returns when nothing is going on, and only then."""

from __future__ import annotations

from storage_server.memory.idle import WORTH_BYTES, IdleRelease


def released(looks: list[bool], kept: int = WORTH_BYTES, device: str = "cpu") -> int:
    """How often memory was released while the server was found idle or not."""
    calls: list[str] = []
    answers = iter(looks)
    idle = IdleRelease(lambda: next(answers), device, lambda: kept, calls.append)
    for _ in looks:
        idle.tick()
    assert set(calls) <= {device}
    return len(calls)


def test_once_for_each_time_of_rest() -> None:
    assert released([True, True, True, True]) == 1
    assert released([True, True, False, True, True]) == 2


def test_never_between_two_requests() -> None:
    assert released([True, False, True, False]) == 0


def test_not_for_little() -> None:
    assert released([True, True], kept=WORTH_BYTES - 1) == 0
    assert released([True, True], kept=0, device="cuda") == 1, "what a GPU's allocator keeps is not the host's"
