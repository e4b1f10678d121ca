"""The keys of the mail server, without what talks to it."""

from __future__ import annotations

import os
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from tiebreak.config import Section
from tiebreak.errors import ConfigError

PASSWORD = "TIEBREAK_SMTP_PASSWORD"
MAX_ADDRESS_CHARACTERS = 254
"""RFC 5321, 4.5.3.1.3."""
_ADDRESS = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}@[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?", re.ASCII)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_address(address: str) -> str:
    """An e-mail address without a name, comments, quotes or line breaks: nothing that could change a header.

    >>> check_address("ada@example.org")
    'ada@example.org'
    """
    address = address.strip()
    if len(address) > MAX_ADDRESS_CHARACTERS or not _ADDRESS.fullmatch(address) or ".." in address:
        raise ValueError("must be an e-mail address, such as ada@example.org")
    return address


class MailConfig(Section):
    """The mail server, for raters who want an e-mail when there is work again."""

    server: str = Field(min_length=1, max_length=255)
    """host name of the mail server"""
    port: int = Field(default=587, ge=1, le=65535)
    """port of the mail server: 587 for starttls, 465 for tls"""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """encryption; the server's certificate is checked. none: only for a mail server on this machine"""
    username: str = ""
    """name to log in with; the password is the environment variable TIEBREAK_SMTP_PASSWORD; empty: no login"""
    sender: str
    """address that the mails are from"""
    link: str
    """address of the pages, as raters open them: https://labels.example.org/rate/"""
    hours_between: float = Field(default=12.0, ge=0.0, le=720.0)
    """hours between two mails about work to the same rater"""

    @field_validator("sender")
    @classmethod
    def _an_address(cls, sender: str) -> str:
        return check_address(sender)

    @field_validator("link")
    @classmethod
    def _a_link(cls, link: str) -> str:
        parts = urlsplit(link)
        if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", link):
            raise ValueError("must be an address such as https://labels.example.org/rate/")
        return link

    @model_validator(mode="after")
    def _encrypted(self) -> MailConfig:
        if self.security == "none" and self.server not in _LOOPBACK:
            raise ValueError("security: none would send addresses unencrypted: set starttls or tls")
        return self


def password_of_environment(config: MailConfig) -> str:
    """The password of the mail server; empty where none is needed.

    Raises:
        ConfigError: a username is configured, and the password is not set.
    """
    password = os.environ.get(PASSWORD, "")
    if config.username and not password:
        raise ConfigError(f"mail: set the environment variable {PASSWORD} to the password of {config.username}")
    return password
