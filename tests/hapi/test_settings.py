"""Settings say what is wrong in a sentence, with the name of the variable to correct."""

from __future__ import annotations

import pytest

from hapi.errors import InputError
from hapi.settings import StoreSettings


def test_a_wrong_setting_is_a_sentence_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAPI_S3_ENDPOINT", "127.0.0.1:9000")
    with pytest.raises(InputError) as caught:
        StoreSettings.load()
    assert str(caught.value) == (
        "object store settings, HAPI_S3_ENDPOINT: must be an address like http://host:9000. Correct or unset it."
    )


def test_secrets_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HAPI_S3_ACCESS_KEY", raising=False)
    with pytest.raises(InputError) as caught:
        StoreSettings.load(secret_key="not to be shown")
    assert "belong together" in str(caught.value)
    assert "not to be shown" not in str(caught.value)
