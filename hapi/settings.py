"""Settings that every room shares: how to reach the object store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hapi.errors import InputError


def said(fault: Mapping[str, Any]) -> str:
    """What pydantic found at fault, without its own prefix and without the full stop."""
    return str(fault["msg"]).removeprefix("Value error, ").rstrip(".")


class StoreSettings(BaseSettings):
    """How to reach and read object stores. Each field is also an environment variable, HAPI_S3_<NAME>.

    What is absent here is taken from the standard AWS chain: AWS_ACCESS_KEY_ID, profiles, web identity, instance roles,
    AWS_REGION, AWS_ENDPOINT_URL_S3, AWS_CA_BUNDLE. Secrets are kept out of the repr and of validation errors.
    """

    model_config = SettingsConfigDict(
        env_prefix="HAPI_S3_", frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    endpoint: str | None = None
    """Address of an S3-compatible store, http://host:port; None means AWS, or AWS_ENDPOINT_URL(_S3)."""
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    session_token: SecretStr | None = None
    region: str | None = None
    profile: str | None = None
    """A named profile of the AWS configuration files."""
    ca_bundle: Path | None = None
    """PEM file with the certificate authority of a store that signs its own certificates."""
    unsigned: bool = False
    """Ask without credentials: public buckets."""
    requester_pays: bool = False
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """`auto` is `path` at a custom endpoint and botocore's own choice at AWS."""
    readers: int = Field(default=32, ge=1, le=1024)
    """Most requests in flight from one process; the connection pool is as large."""
    attempts: int = Field(default=5, ge=1, le=20)
    """Most tries of one request by botocore, the first included; a read may be tried once before, without it."""
    retry_mode: Literal["standard", "adaptive"] = "standard"
    connect_timeout_seconds: float = Field(default=5.0, gt=0, le=600)
    read_timeout_seconds: float = Field(default=30.0, gt=0, le=3600)
    follow_links: bool = Field(default=False, validation_alias="HAPI_FILE_FOLLOW_LINKS")
    """Folders only: read through symbolic links that lead outside of the root."""

    @classmethod
    def load(cls, **values: Any) -> Self:
        """The settings from the environment, `values` on top; InputError names the field and what is wrong."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            field = "_".join(str(part) for part in first["loc"]) or "settings"
            name = field if field.startswith("HAPI_") else f"HAPI_S3_{field.upper()}"
            raise InputError(f"object store settings, {name}: {said(first)}. Correct or unset it.") from None

    def to_json(self) -> dict[str, Any]:
        """What `load` takes to give the same, whatever the environment: with the secrets, so for no other machine."""
        values = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            value = value.get_secret_value() if isinstance(value, SecretStr) else value
            values[str(field.validation_alias or name)] = str(value) if isinstance(value, Path) else value
        return values

    @field_validator("endpoint")
    @classmethod
    def _plain_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address like http://host:9000")
        if parts.username or parts.password:
            raise ValueError("must not hold credentials; set HAPI_S3_ACCESS_KEY and HAPI_S3_SECRET_KEY")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _whole_credentials(self) -> Self:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("HAPI_S3_ACCESS_KEY and HAPI_S3_SECRET_KEY belong together, only one is set")
        if self.session_token is not None and self.access_key is None:
            raise ValueError("HAPI_S3_SESSION_TOKEN belongs to keys, but HAPI_S3_ACCESS_KEY is not set")
        if self.unsigned and self.access_key is not None:
            raise ValueError("HAPI_S3_UNSIGNED asks without credentials, but HAPI_S3_ACCESS_KEY is set")
        return self
