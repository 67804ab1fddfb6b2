"""What was asked a moment ago is not asked again."""

from __future__ import annotations

from storage_server.memory.lately import Lately


def test_an_answer_holds_for_a_while_and_for_its_device() -> None:
    now, asked = [0.0], list[str]()

    def ask(device: str) -> int:
        asked.append(device)
        return len(asked)

    free = Lately(ask, seconds=1.0, clock=lambda: now[0])
    assert [free("cpu"), free("cpu"), free("cuda:0"), free("cpu")] == [1, 1, 2, 1]
    now[0] = 1.5
    assert [free("cpu"), free("cpu")] == [3, 3]
    assert asked == ["cpu", "cuda:0", "cpu"]
