"""A name that there is not is refused before anything is measured, by every scenario that chooses among names."""

from __future__ import annotations

import pytest

from hapi import cli


@pytest.mark.parametrize("scenario", ["e2e", "sweep", "replan", "faults", "tenants", "memory", "engine", "device"])
def test_a_system_that_is_none_is_refused(
    scenario: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["hapi", "bench", scenario, "--system", "nothing"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "system 'nothing': there are " in " ".join(capsys.readouterr().err.split())


def test_a_part_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["hapi", "bench", "tenants", "--part", "nothing"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "there are mixed, same, beside, vanish" in " ".join(capsys.readouterr().err.split())
