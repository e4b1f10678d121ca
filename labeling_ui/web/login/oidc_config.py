"""The keys of an identity provider, without the packages that talk to it."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tiebreak.config import Section


class OidcConfig(Section):
    """Log in through an identity provider."""

    issuer: str
    """the provider's issuer, below which its discovery document is: https://id.example/realms/team (Keycloak),
    https://accounts.google.com, https://login.microsoftonline.com/TENANT/v2.0"""
    client_id: str
    """the client that was registered at the provider, with the redirect address https://HOST/api/oidc/callback"""
    client_secret_env: str = "TIEBREAK_OIDC_SECRET"
    """environment variable that holds the client's secret; unset: a public client"""
    scopes: list[str] = Field(default=["openid", "email", "profile"])
    """what to ask the provider for"""
    label: str = Field(default="Log in with your organisation", min_length=1, max_length=100)
    """text of the button on the login page"""

    @field_validator("issuer")
    @classmethod
    def _encrypted(cls, issuer: str) -> str:
        parts = urlsplit(issuer)
        on_this_machine = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
        if not parts.hostname or not (parts.scheme == "https" or on_this_machine):
            raise ValueError(f"{issuer!r} must be an address that begins with https://")
        return issuer.rstrip("/").removesuffix("/.well-known/openid-configuration")
