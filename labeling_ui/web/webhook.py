"""A webhook: the server sends what happens in the campaign to an address of the team's own.

    POST URL
    X-Tiebreak-Event: judgments | batch_finished | dispute | rater_stopped
    X-Tiebreak-Delivery: an id, the same if it is sent again
    X-Tiebreak-Timestamp: seconds since 1970
    X-Tiebreak-Signature: sha256=HMAC-SHA256 of TIMESTAMP.BODY, with the secret

The store keeps the place in the log up to which events were sent. It moves once the receiver has answered 2xx, so a crash
loses nothing; several servers may send an event twice, with the same id. Addresses of private networks are refused unless a
key allows them, even if a host name resolves to one later; redirects are not followed.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from pydantic import Field, field_validator
from sqlalchemy.exc import SQLAlchemyError

from labeling_ui.database.event_log import Transaction
from labeling_ui.database.schema import SETTINGS
from labeling_ui.store.figures.news import NEWS_KINDS, News, NewsKind, Place, present_place, read_news
from labeling_ui.store.store import Store
from tiebreak.config import Section
from tiebreak.errors import ConfigError

LOOK_SECONDS = 5.0
FIRST_WAIT_SECONDS = 1.0
MOST_WAIT_SECONDS = 300.0
TIMEOUT_SECONDS = 10.0
PLACE = "webhook"
"""The setting with the place in the log up to which events were sent."""
SECRET = "TIEBREAK_WEBHOOK_SECRET"
MIN_SECRET_CHARACTERS = 16


class WebhookConfig(Section):
    """Where the server reports what happens in the campaign."""

    url: str
    """address to send to, https; the secret that signs is the environment variable TIEBREAK_WEBHOOK_SECRET"""
    events: list[NewsKind] = Field(default=list(NEWS_KINDS), min_length=1)
    """what to report"""
    every: int = Field(default=100, ge=1)
    """report judgments each time this many were submitted"""
    allow_private: bool = False
    """allow http, and addresses of this machine and of private networks"""

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.fragment:
            raise ValueError("must be an address such as https://example.org/hook, without a name or password")
        return url


class DeliveryError(Exception):
    """The receiver did not accept a delivery."""


def secret_of_environment() -> bytes:
    """The signing secret.

    Raises:
        ConfigError: it is missing or short.
    """
    secret = os.environ.get(SECRET, "")
    if len(secret) < MIN_SECRET_CHARACTERS:
        raise ConfigError(
            f"webhook: set the environment variable {SECRET} to {MIN_SECRET_CHARACTERS} or more characters"
        )
    return secret.encode()


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """The signature of a delivery."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Webhook:
    """Sends a campaign's news from a thread of its own, until it is closed.

    Args:
        name: of the campaign in addresses, by which a receiver tells the campaigns of a server apart; their logs, and so
            the numbers of their events, are independent.
    """

    def __init__(
        self,
        store: Store,
        config: WebhookConfig,
        title: str,
        send: Callable[[News], None] | None = None,
        *,
        name: str = "",
    ) -> None:
        self._store, self._config, self._title, self._name = store, config, title, name
        self._secret = secret_of_environment()
        if not config.allow_private and urlsplit(config.url).scheme != "https":
            raise ConfigError("webhook: url must be https, or set webhook.allow_private: true")
        self._send = send or self._post
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def __enter__(self) -> Webhook:
        """Start. A campaign's earlier events are not sent."""
        if self._place() is None:
            with self._store.reading() as connection:
                place = present_place(connection)
            self._keep(place)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(TIMEOUT_SECONDS)

    def _run(self) -> None:
        wait, failing = FIRST_WAIT_SECONDS, False
        while not self._over.is_set():
            try:
                done = self.send_waiting()
                wait, failing = FIRST_WAIT_SECONDS, False
                if done:
                    continue
                self._over.wait(LOOK_SECONDS)
            except (DeliveryError, OSError, http.client.HTTPException, SQLAlchemyError) as error:
                if not failing:
                    print(f"webhook: {self._config.url}: {error}; trying again", file=sys.stderr, flush=True)
                failing = True
                self._over.wait(wait)
                wait = min(2 * wait, MOST_WAIT_SECONDS)

    def send_waiting(self) -> bool:
        """Send new events; returns whether the place in the log moved.

        Raises:
            DeliveryError: the receiver did not accept it: it is sent again, with all after the last place.
        """
        place = self._place() or Place()
        with self._store.reading() as connection:
            news, following = read_news(connection, place, self._config.every)
        for one in news:
            if one.kind in self._config.events:
                self._send(one)
        if following != place:
            self._keep(following)
        return following != place

    def _place(self) -> Place | None:
        with self._store.reading_once() as connection:
            value = connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == PLACE))
        if value is None:
            return None
        kept = json.loads(value)
        return Place(kept["seq"], kept["judgments"], tuple(kept["finished"]))

    def _keep(self, place: Place) -> None:
        value = json.dumps(asdict(place))

        def keep(tx: Transaction) -> None:
            changed = tx.connection.execute(sa.update(SETTINGS).where(SETTINGS.c.name == PLACE).values(value=value))
            if changed.rowcount == 0:
                tx.connection.execute(sa.insert(SETTINGS).values(name=PLACE, value=value))

        self._store.transact(keep)

    def _post(self, news: News) -> None:
        identity = f"{self._name}-{news.id}" if self._name else news.id
        campaign = {"campaign": self._title} | ({"name": self._name} if self._name else {})
        message = {"id": identity, "event": news.kind, "at_ms": news.at_ms, **campaign, "data": news.about}
        body, timestamp = json.dumps(message, ensure_ascii=False).encode(), str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "tiebreak",
            "X-Tiebreak-Event": news.kind,
            "X-Tiebreak-Delivery": identity,
            "X-Tiebreak-Timestamp": timestamp,
            "X-Tiebreak-Signature": sign(self._secret, timestamp, body),
        }
        parts = urlsplit(self._config.url)
        connection = connect(self._config)
        try:
            connection.request("POST", parts.path + (f"?{parts.query}" if parts.query else "") or "/", body, headers)
            status = connection.getresponse().status
        finally:
            connection.close()
        if not 200 <= status < 300:
            raise DeliveryError(f"the receiver answered {status}")


def connect(config: WebhookConfig) -> http.client.HTTPConnection:
    """A connection to the address that was checked, whatever its name points to a moment later.

    Raises:
        DeliveryError: it is private, and the configuration does not allow that.
    """
    parts = urlsplit(config.url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [one[4][0] for one in found]
    if not config.allow_private and (private := [one for one in addresses if not _is_public(one)]):
        raise DeliveryError(f"{host} is {private[0]}, an address of a private network: set webhook.allow_private: true")
    if parts.scheme == "http":
        return _Plain(host, addresses[0], port)
    return _Secure(host, addresses[0], port)


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(parsed, "ipv4_mapped", None) or parsed
    return bool(inner.is_global) and not inner.is_multicast


class _Plain(http.client.HTTPConnection):
    def __init__(self, host: str, address: str, port: int) -> None:
        super().__init__(host, port, timeout=TIMEOUT_SECONDS)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), TIMEOUT_SECONDS)


class _Secure(_Plain):
    default_port = 443

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
