"""What is mailed, and when: a code that confirms an address, that there is work again, and that a login was changed.

A thread of its own sends: no request waits for the mail server, and what it refuses is tried again or reported on stderr.
"""

from __future__ import annotations

import queue
import re
import smtplib
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from functools import partial
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError

from labeling_ui.store.store import Store, wall_clock_ms
from labeling_ui.store.work import addresses
from labeling_ui.web.mail.configuration import MailConfig, password_of_environment

Kind = Literal["code", "work", "password", "factor"]
LOOK_SECONDS = 60.0
TIMEOUT_SECONDS = 20.0
MOST_WAITING = 1_000
MOST_ATTEMPTS = 3
MOST_CODES_A_DAY = 10
"""To addresses that a rater names."""
DAY_SECONDS = 86_400
HOUR_MS = 3_600_000
_FAILURES = (smtplib.SMTPException, OSError)


@dataclass
class Mail:
    """One mail to one rater."""

    kind: Kind
    to: str
    rater_id: str
    code: str = ""
    attempts: int = 0


class Mailer:
    """Sends a campaign's mails from a thread of its own, until it is closed.

    Raises:
        ConfigError: the password of the mail server is not set.
    """

    def __init__(
        self,
        store: Store,
        config: MailConfig,
        title: str,
        words: Mapping[str, str],
        send: Callable[[EmailMessage], None] | None = None,
    ) -> None:
        self._store, self._config, self._title, self._words = store, config, title, words
        self._password = password_of_environment(config)
        self._send = send or self._deliver
        self._waiting: queue.Queue[Mail] = queue.Queue(MOST_WAITING)
        self._codes: dict[str, list[float]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mail", daemon=True)

    def __enter__(self) -> Mailer:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(TIMEOUT_SECONDS)

    def put(self, mail: Mail) -> bool:
        """Queue a mail; False if too many are waiting."""
        try:
            self._waiting.put_nowait(mail)
        except queue.Full:
            return False
        return True

    def may_send_code(self, rater_id: str) -> bool:
        """Whether a rater may have another code sent: codes go to addresses that nobody has confirmed."""
        now = time.monotonic()
        with self._lock:
            recent = [at for at in self._codes.get(rater_id, []) if now - at < DAY_SECONDS]
            self._codes[rater_id] = [*recent, now][-MOST_CODES_A_DAY:]
            return len(recent) < MOST_CODES_A_DAY

    def warn(self, rater_id: str, kind: Kind) -> None:
        """Tell a rater that their login was changed, if they have confirmed an address."""
        with self._store.reading() as connection:
            address = addresses.address_of(connection, rater_id)
        if address is not None and address.confirmed:
            self.put(Mail(kind, address.email, rater_id))

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self.look_for_work()
            except SQLAlchemyError as error:
                print(f"mail: {error.__cause__ or error}; looking again", file=sys.stderr, flush=True)
            until = wall_clock_ms() + LOOK_SECONDS * 1_000
            while not self._over.is_set() and wall_clock_ms() < until:
                self.send_next(0.5)

    def look_for_work(self) -> None:
        """Queue a mail to every rater for whom there is work again."""
        now = wall_clock_ms()
        with self._store.reading() as connection:
            found = [
                (
                    one,
                    waits,
                    addresses.has_work(connection, one.rater_id),
                    addresses.is_working(connection, one.rater_id, now),
                )
                for one, waits in addresses.recipients(connection)
            ]
        for one, waits, there_is_work, working in found:
            if not waits and not there_is_work:
                self._store.transact(partial(addresses.await_work, rater_id=one.rater_id))
            rested = one.sent_at_ms is None or now - one.sent_at_ms >= self._config.hours_between * HOUR_MS
            wanted = waits and there_is_work and rested and not working
            if wanted and self._store.transact(partial(addresses.take, rater_id=one.rater_id)):
                self.put(Mail("work", one.email, one.rater_id))

    def send_next(self, seconds: float = 0.0) -> bool:
        """Send the next mail, if one comes within some seconds; whether one did."""
        try:
            mail = self._waiting.get(timeout=seconds) if seconds else self._waiting.get_nowait()
        except queue.Empty:
            return False
        self.send(mail)
        return True

    def send(self, mail: Mail) -> None:
        """Send a mail now. If that fails, it is queued again, at most `MOST_ATTEMPTS` times."""
        try:
            self._send(self.write(mail))
        except _FAILURES as error:
            mail.attempts += 1
            again = mail.attempts < MOST_ATTEMPTS and not isinstance(error, smtplib.SMTPRecipientsRefused)
            print(f"mail: {_reason(error)}{'; trying again' if again else ''}", file=sys.stderr, flush=True)
            if again and not self._over.wait(min(2.0**mail.attempts, 10.0)):
                self.put(mail)

    def write(self, mail: Mail) -> EmailMessage:
        """The mail as it is sent; it has no text that a rater or a pair supplied."""
        values = {"campaign": self._title, "code": mail.code, "link": self._config.link}
        message = EmailMessage()
        message["From"], message["To"] = self._config.sender, mail.to
        message["Subject"] = " ".join(self._say(f"mail.{mail.kind}.subject", values).split())
        message["Date"], message["Message-ID"] = formatdate(localtime=False), make_msgid(domain="tiebreak.invalid")
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic answers
        message.set_content(f"{self._say(f'mail.{mail.kind}.text', values)}\n\n{self._say('mail.why', values)}\n")
        return message

    def _say(self, key: str, values: Mapping[str, str]) -> str:
        """A text of the pages' words with {names} filled in, as the pages do."""
        return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), self._words[key])

    def _deliver(self, message: EmailMessage) -> None:
        context = ssl.create_default_context()
        where = (self._config.server, self._config.port)
        server = (
            smtplib.SMTP_SSL(*where, timeout=TIMEOUT_SECONDS, context=context)
            if self._config.security == "tls"
            else smtplib.SMTP(*where, timeout=TIMEOUT_SECONDS)
        )
        with server:
            if self._config.security == "starttls":
                server.starttls(context=context)
            if self._config.username:
                server.login(self._config.username, self._password)
            server.send_message(message)


def _reason(error: Exception) -> str:
    """Without addresses: they are personal data, and stderr is kept."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return "the mail server refused a recipient"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"the mail server answered {error.smtp_code} ({type(error).__name__})"
    return f"{type(error).__name__}: {error}"
