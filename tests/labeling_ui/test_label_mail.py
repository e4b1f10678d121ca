"""E-mail: who gets it and when, over what connection, and that neither a slow server nor a hostile address does harm."""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
import sqlalchemy as sa
from label_support import free_port, make_pair, open_store
from test_label_api import PAGE, PASSWORD, Campaign, no_pages  # noqa: F401 - a fixture

from labeling_ui.database.schema import MAIL_ADDRESSES
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.store.work import addresses
from labeling_ui.web.mail import sending
from labeling_ui.web.mail.configuration import PASSWORD as PASSWORD_VARIABLE
from labeling_ui.web.mail.configuration import MailConfig
from labeling_ui.web.mail.sending import Mail, Mailer
from labeling_ui.web.server import create_app
from tiebreak.errors import ConfigError

LINK = "https://labels.example.org/rate/"
CONFIG = MailConfig(server="127.0.0.1", security="none", sender="labels@example.org", link=LINK, hours_between=0.0)


class Post:
    """A campaign with a mailer whose mails are kept, and sent when the test says."""

    def __init__(self, store: Store, config: MailConfig = CONFIG) -> None:
        self.got: list[EmailMessage] = []
        self.site = Campaign(store)
        self.mailer = Mailer(store, config, "A campaign", PAGE.words, self.got.append)
        self.site.app = create_app(store, PAGE, mail=self.mailer)

    def confirm(self, who: str, email: str) -> None:
        assert self.site.call(who, "PUT", "/api/mail", {"email": email}).status_code == 200
        assert self.mailer.send_next()
        code = re.search(r"\d{6}", self.got.pop()["Subject"])
        assert code is not None
        assert self.site.call(who, "POST", "/api/mail/confirm", {"code": code[0]}).status_code == 200

    def look(self) -> list[tuple[str, str]]:
        """To whom and about what mails are sent now."""
        self.mailer.look_for_work()
        while self.mailer.send_next():
            pass
        sent = [(one["To"], one["Subject"]) for one in self.got]
        self.got.clear()
        return sent


@pytest.fixture
def post(url: str) -> Iterator[Post]:
    store = open_store(url, [make_pair(n) for n in range(2)], overlap=2, raters=0)
    made = Post(store)
    yield made
    assert verify(store).faults == []
    store.close()


def finish(post: Post, who: str) -> None:
    while (pair := post.site.call(who, "GET", "/api/next").json()) is not None:
        body = {"client_id": f"{who}{pair['pair_id']}", "pair_id": pair["pair_id"], "answer": 1}
        assert post.site.call(who, "POST", "/api/judgments", body).status_code == 200


def test_who_had_finished_is_written_to_once_when_there_is_work_again(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "is_working", lambda *_: False)
    work = "There is work again: A campaign"
    for who in ("one", "other"):
        post.confirm(who, f"{who}@example.org")
    assert post.look() == []  # there is work, as before
    finish(post, "one")
    assert post.look() == []  # nothing is left for one
    post.site.store.add_pairs([make_pair(7)], overlap=2, seed=0, source="more", source_id="more")
    second = Mailer(post.site.store, CONFIG, "A campaign", PAGE.words, post.got.append)
    second.look_for_work()  # of another server on the same store
    assert post.look() == []
    assert second.send_next()
    assert [(one["To"], one["Subject"]) for one in post.got] == [("one@example.org", work)]
    assert LINK in post.got.pop().get_content()
    assert post.look() == []
    finish(post, "one")
    post.look()
    finish(post, "other")
    post.look()
    assert post.site.call("other", "DELETE", "/api/mail").status_code == 200
    post.site.store.add_pairs([make_pair(8)], overlap=2, seed=0, source="yet more", source_id="yet more")
    assert post.look() == [("one@example.org", work)]


def test_nobody_is_written_to_while_they_work_or_soon_again_or_when_stopped(post: Post) -> None:
    post.mailer = Mailer(post.site.store, replace_hours(12), "A campaign", PAGE.words, post.got.append)
    post.site.app = create_app(post.site.store, PAGE, mail=post.mailer)
    post.confirm("one", "one@example.org")
    finish(post, "one")
    post.look()
    post.site.store.add_pairs([make_pair(7)], overlap=2, seed=0, source="more", source_id="more")
    assert post.look() == []  # they judged a moment ago
    with pytest.MonkeyPatch.context() as later:
        later.setattr(sending, "wall_clock_ms", lambda: int(time.time() * 1_000) + 3 * 3_600_000)
        assert [to for to, _ in post.look()] == ["one@example.org"]
    finish(post, "one")
    post.look()
    post.site.store.add_pairs([make_pair(8)], overlap=2, seed=0, source="yet more", source_id="yet more")
    with pytest.MonkeyPatch.context() as later:
        later.setattr(sending, "wall_clock_ms", lambda: int(time.time() * 1_000) + 4 * 3_600_000)
        assert post.look() == []  # twelve hours between two
        later.setattr(sending, "wall_clock_ms", lambda: int(time.time() * 1_000) + 20 * 3_600_000)
        rater_id = post.site.sessions["one"].rater.id
        post.site.call("lead", "PUT", f"/api/lead/raters/{rater_id}", {"disabled": True})
        assert post.look() == []
        post.site.call("lead", "PUT", f"/api/lead/raters/{rater_id}", {"disabled": False})
        assert [to for to, _ in post.look()] == ["one@example.org"]


def replace_hours(hours: float) -> MailConfig:
    return CONFIG.model_copy(update={"hours_between": hours})


def test_an_address_counts_once_its_code_is_entered(post: Post) -> None:
    site = post.site
    assert site.call("one", "GET", "/api/mail").json() == {"offered": True, "email": None, "confirmed": False}
    assert site.call("one", "PUT", "/api/mail", {"email": "one@example.org"}).status_code == 200
    assert site.call("one", "PUT", "/api/mail", {"email": "two@example.org"}).status_code == 409  # a moment ago
    assert post.mailer.send_next()
    code = post.got.pop()["Subject"][:6]
    assert site.call("other", "POST", "/api/mail/confirm", {"code": code}).status_code == 409  # not theirs
    post.mailer.warn(site.sessions["one"].rater.id, "password")
    assert not post.mailer.send_next()  # nothing goes to an address that is not confirmed
    wrong = f"{(int(code) + 1) % 1_000_000:06}"
    for _ in range(addresses.MOST_TRIES):
        assert site.call("one", "POST", "/api/mail/confirm", {"code": wrong}).status_code == 409
    assert site.call("one", "POST", "/api/mail/confirm", {"code": code}).status_code == 409  # tried too often
    assert site.call("one", "GET", "/api/mail").json()["confirmed"] is False
    assert site.call("one", "DELETE", "/api/mail").status_code == 200
    assert site.call("one", "GET", "/api/mail").json()["email"] is None
    again = site.call("one", "PUT", "/api/mail", {"email": "victim@example.org"})
    assert again.status_code == 409, "an address that was deleted does not let codes be sent one after another"
    a_minute_passes(site.store)
    post.confirm("one", "one@example.org")
    assert site.call("one", "GET", "/api/mail").json()["confirmed"] is True
    own = site.call("one", "GET", "/api/own-data").json()["email"]
    assert [one["email"] for one in own] == ["one@example.org"]
    new = {"current": PASSWORD, "new": "quite another long password"}
    assert site.call("one", "POST", "/api/password", new).status_code == 200
    site.call("lead", "POST", f"/api/lead/raters/{site.sessions['one'].rater.id}/password", {})
    assert [subject for _, subject in post.look()] == ["Your password was changed: A campaign"] * 2
    assert "one@example.org" not in str(site.call("lead", "GET", "/api/lead/raters").json())
    site.call("lead", "POST", f"/api/lead/raters/{site.sessions['one'].rater.id}/erase", {"judgments": False})
    with site.store.reading() as connection:
        assert addresses.address_of(connection, site.sessions["one"].rater.id) is None


def a_minute_passes(store: Store) -> None:
    """Since codes were sent."""
    earlier = MAIL_ADDRESSES.c.code_until_ms - addresses.WAIT_SECONDS * 1_000
    with store.engine.begin() as connection:
        connection.execute(sa.update(MAIL_ADDRESSES).values(code_until_ms=earlier))


def test_codes_are_sent_ten_times_a_day_at_most(tmp_path: Path) -> None:
    """They go to addresses that nobody has confirmed."""
    post = Post(open_store(tmp_path, [make_pair(0)], raters=0))
    statuses = []
    for n in range(sending.MOST_CODES_A_DAY + 2):
        statuses.append(post.site.call("one", "PUT", "/api/mail", {"email": f"victim{n}@example.org"}).status_code)
        a_minute_passes(post.site.store)
    assert statuses == [200] * 10 + [429] * 2
    assert post.site.call("other", "PUT", "/api/mail", {"email": "other@example.org"}).status_code == 200


def test_no_address_changes_a_header_or_goes_to_several(post: Post) -> None:
    bad = ["", "ada", "ada@", "@example.org", "a@b@c.org", "ada@example.org, eve@example.org", "ada@example.org\0"]
    bad += ["ada@example.org\r\nBcc: eve@example.org", "Ada <ada@example.org>", '"a b"@example.org', "ada@[127.0.0.1]"]
    bad += ["ada@exa mple.org", "a..b@example.org", "x" * 250 + "@example.org"]
    for email in bad:
        reply = post.site.call("one", "PUT", "/api/mail", {"email": email})
        assert reply.status_code == 422, email
    hostile = Mailer(post.site.store, CONFIG, "A\r\nBcc: eve@example.org {code} {0.x}", PAGE.words, post.got.append)
    hostile.send(Mail("work", "ada@example.org", "r"))
    (mail,) = post.got
    assert mail["Bcc"] is None
    assert "\n" not in mail["Subject"]
    assert mail["Auto-Submitted"] == "auto-generated"
    assert bytes(mail).count(b"\nTo:") == 1


def test_a_campaign_without_a_mail_server_offers_none(tmp_path: Path) -> None:
    site = Campaign(open_store(tmp_path, [make_pair(0)], raters=0))
    assert site.call("one", "GET", "/api/mail").json()["offered"] is False
    assert site.call("one", "PUT", "/api/mail", {"email": "a@example.org"}).status_code == 409


def test_the_password_is_in_the_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=PASSWORD_VARIABLE):
        Mailer(store, CONFIG.model_copy(update={"username": "labels"}), "t", PAGE.words)
    with pytest.raises(ValueError, match="unencrypted"):
        MailConfig(server="mail.example.org", security="none", sender="a@example.org", link=LINK)
    with pytest.raises(ValueError, match="extra"):
        MailConfig(server="mail.example.org", sender="a@example.org", link=LINK, password="x")  # type: ignore[call-arg]


# --- the connection ---


class StandIn:
    """A mail server that keeps what it gets: RFC 5321's commands, STARTTLS, and AUTH PLAIN."""

    def __init__(self, context: ssl.SSLContext | None, *, silent: bool = False) -> None:
        self.lines: list[str] = []
        self.encrypted: list[bool] = []
        self.mails: list[str] = []
        self.refuse = 0
        self._context, self._silent = context, silent
        self.asked, self.answering = threading.Event(), threading.Event()
        self.port = free_port()
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection, contextlib.suppress(OSError, ssl.SSLError):
                    self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        self.asked.set()
        if self._silent:
            self.answering.wait(60)
            return
        connection.sendall(b"220 stand-in\r\n")
        while self._command(connection):
            if self.lines[-1].upper() == "STARTTLS" and self._context is not None:
                with self._context.wrap_socket(connection, server_side=True) as secured:
                    while self._command(secured):
                        pass
                return

    def _command(self, connection: socket.socket) -> bool:
        line = _read_line(connection)
        self.lines.append(line)
        verb = line.split(" ")[0].upper()
        secured = isinstance(connection, ssl.SSLSocket)
        if verb == "EHLO":
            offers = "AUTH PLAIN" if secured or self._context is None else "STARTTLS"
            connection.sendall(f"250-stand-in\r\n250 {offers}\r\n".encode())
        elif verb == "AUTH":
            connection.sendall(b"235 welcome\r\n")
        elif verb == "DATA":
            connection.sendall(b"354 go on\r\n")
            self.mails.append("\n".join(iter(lambda: _read_line(connection), ".")))
            self.encrypted.append(secured)
            connection.sendall(b"250 kept\r\n")
        elif verb == "MAIL" and self.refuse:
            self.refuse -= 1
            connection.sendall(b"451 later\r\n")
        else:
            connection.sendall({"QUIT": b"221 bye\r\n", "STARTTLS": b"220 go\r\n"}.get(verb, b"250 ok\r\n"))
        return verb not in ("QUIT", "")


def _read_line(connection: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError
        line += byte
    return line[:-2].decode()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate of 127.0.0.1 that nobody trusts yet, and the context of a server that has it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    file = tmp_path / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return file, context


@pytest.fixture
def stand_in() -> Iterator[Callable[..., StandIn]]:
    made: list[StandIn] = []

    def start(context: ssl.SSLContext | None = None, *, silent: bool = False) -> StandIn:
        made.append(StandIn(context, silent=silent))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_mail_goes_over_tls_to_a_trusted_server_alone(
    certificate: tuple[Path, ssl.SSLContext],
    stand_in: Callable[..., StandIn],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, context = certificate
    server = stand_in(context)
    monkeypatch.setenv(PASSWORD_VARIABLE, "the password of the mail server")
    monkeypatch.setattr(sending, "MOST_ATTEMPTS", 1)
    config = MailConfig(server="127.0.0.1", port=server.port, username="labels", sender="labels@example.org", link=LINK)
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    mailer = Mailer(store, config, "A campaign", PAGE.words)
    mailer.send(Mail("code", "ada@example.org", "r", "123456"))
    assert "certificate verify failed" in capsys.readouterr().err.lower()
    assert server.mails == []
    assert not [line for line in server.lines if line.upper().startswith(("AUTH", "MAIL"))]
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    mailer.send(Mail("code", "ada@example.org", "r", "123456"))
    assert server.encrypted == [True]
    assert "123456" in server.mails[0]
    said = next(line for line in server.lines if line.startswith("AUTH PLAIN"))
    assert base64.b64decode(said.split()[2]) == b"\0labels\0the password of the mail server"
    assert "rcpt to:<ada@example.org>" in [line.lower() for line in server.lines]
    plain = stand_in()  # a server, or someone between, that offers no encryption
    mailer = Mailer(store, config.model_copy(update={"port": plain.port}), "A campaign", PAGE.words)
    mailer.send(Mail("work", "ada@example.org", "r"))
    assert plain.mails == []
    assert not [line for line in plain.lines if line.upper().startswith(("AUTH", "MAIL"))]
    assert "ada@example.org" not in capsys.readouterr().err


def test_what_is_refused_for_now_is_sent_again(
    stand_in: Callable[..., StandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stand_in()
    server.refuse = 1
    config = CONFIG.model_copy(update={"port": server.port})
    mailer = Mailer(open_store(tmp_path, [make_pair(0)], raters=0), config, "A campaign", PAGE.words)
    monkeypatch.setattr(mailer._over, "wait", lambda _seconds: False)
    mailer.send(Mail("work", "ada@example.org", "r"))
    assert server.mails == []
    assert mailer.send_next()
    assert len(server.mails) == 1


def test_a_silent_mail_server_holds_up_nobody(
    stand_in: Callable[..., StandIn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server says nothing until all requests are answered."""
    monkeypatch.setattr(sending, "MOST_ATTEMPTS", 1)
    server = stand_in(silent=True)
    store = open_store(tmp_path, [make_pair(0)], raters=0)
    post = Post(store)
    with Mailer(store, CONFIG.model_copy(update={"port": server.port}), "t", PAGE.words) as mailer:
        post.site.app = create_app(store, PAGE, mail=mailer)
        assert post.site.call("one", "PUT", "/api/mail", {"email": "one@example.org"}).status_code == 200
        assert server.asked.wait(30)
        assert post.site.call("one", "GET", "/api/next").json()["pair_id"] == "pair-0"
        for _ in range(sending.MOST_WAITING + 5):
            full = not mailer.put(Mail("work", "ada@example.org", "r"))
        assert full  # bounded
        assert not server.mails
        mailer._over.set()
        server.answering.set()
