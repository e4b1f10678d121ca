"""The label server in containers: what its files start is there and is taken by the parser, and a dump restores."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import yaml
from label_support import free_port, make_pair, serving
from support import REPOSITORY

from labeling_ui.configuration import LabelConfig
from labeling_ui.simulate import SimulateConfig, simulate
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.login.accounts import add_account
from labeling_ui.web.security import MAX_BODY_BYTES, MAX_UPLOAD_SECONDS, UPLOADS
from tiebreak.config import load_config

COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
PASSWORD = "a long enough password"
FAKED = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Host": "evil.example"}
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
OURS = "x-tiebreak"
"""a header of the server's own replies, which a proxy's lack"""


def test_the_image_has_all_that_it_copies_and_runs_without_root() -> None:
    shown = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!") for line in shown if line.startswith("!")]
    assert shown[0] == "*"
    assert all((REPOSITORY / name).exists() for name in kept)
    packages = {"tiebreak", "sft", "labeling_ui", "reward", "preference", "evaluation", "configs", "data"}
    assert packages | {"pyproject.toml", "setup.py", "constraints.txt", "README.md"} <= set(kept)
    last_stage = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert int(re.findall(r"^USER (\d+)$", last_stage, re.MULTILINE)[-1]) > 0
    assert "train" not in re.findall(r"\[([a-z,]+)\]\"", last_stage)[0].split(",")
    health = last_stage[last_stage.index("HEALTHCHECK") :]
    assert "/api/health" in health


def test_services_restart_are_watched_and_have_no_ports_but_the_proxys() -> None:
    assert all(one["restart"] == "unless-stopped" for one in SERVICES.values())
    assert all("no-new-privileges:true" in one["security_opt"] for one in SERVICES.values())
    assert [name for name, one in SERVICES.items() if "ports" in one] == ["proxy"]
    waited = {(name, on) for name, one in SERVICES.items() for on in one.get("depends_on", {})}
    assert waited == {("label", "database"), ("backup", "database"), ("proxy", "label")}
    assert "healthcheck" in SERVICES["database"]
    mounted = [volume.split(":")[0] for one in SERVICES.values() for volume in one["volumes"]]
    assert {name for name in mounted if not name.startswith(".")} == set(COMPOSE["volumes"])
    assert all((REPOSITORY / name).exists() for name in mounted if name.startswith("./deploy"))


def test_the_command_is_taken_by_the_parser() -> None:
    words = [re.sub(r"\$\{DOMAIN[^}]*\}", "labels.example.org", word) for word in SERVICES["label"]["command"]]
    words = [word.replace("/config/", f"{REPOSITORY}/deploy/label/") for word in words]
    assert words[0] == "label"
    config = load_config(LabelConfig, words[1:], "label")
    assert (config.host, config.hosts) == ("0.0.0.0", ["labels.example.org"])
    assert config.store_url == "postgresql+psycopg:///tiebreak"  # the rest is in the environment
    assert not config.simulated


def test_a_dump_restores_to_the_same_store(postgres: Callable[[], str], tmp_path: Path) -> None:
    if shutil.which("pg_dump") is None:
        pytest.skip("no pg_dump")
    url = sa.make_url(postgres())
    store = Store.open(url.render_as_string(), create=True)
    store.add_pairs([make_pair(n) for n in range(3)], overlap=1, seed=0, source="", source_id="")
    simulate(store, SimulateConfig(raters=1))
    before = (store.head(), {**store.status(), "store": ""})
    store.close()
    environment = {
        **os.environ,
        "PGHOST": str(url.host),
        "PGPORT": str(url.port),
        "PGUSER": str(url.username),
        "PGDATABASE": str(url.database),
        "BACKUP_FOLDER": str(tmp_path),
    }

    def call(*words: str | Path) -> str:
        done = subprocess.run(list(map(str, words)), env=environment, check=True, capture_output=True, text=True)
        return done.stdout

    output = call("sh", REPOSITORY / "deploy" / "backup.sh", "once")
    (dump,) = tmp_path.iterdir()
    assert output == f"saved: {dump}\n"
    call("createdb", "restored")
    call("pg_restore", "--dbname", "restored", dump)
    restored = Store.open(url.set(database="restored").render_as_string())
    assert (restored.head(), {**restored.status(), "store": ""}) == before
    assert verify(restored).faults == []
    restored.close()


@contextmanager
def behind_nginx(folder: Path, upstream: int, location: str = "/label/") -> Iterator[str]:
    """deploy/nginx.conf as it is shipped, with this machine's ports and a certificate of the test's own.

    Args:
        location: another one, as the file's first lines explain.
    """
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("deploy/nginx.conf is not tested here: no nginx (Debian: apt install nginx-light), or no openssl")
    port, certificate, key = free_port(), folder / "certificate.pem", folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    shipped = (REPOSITORY / "deploy/nginx.conf").read_text()
    for there, here in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"), ("labels.example.org;", "localhost;"),
        ("/etc/ssl/labels.example.org.pem", str(certificate)), ("/etc/ssl/private/labels.example.org.key", str(key)),
        ("http://127.0.0.1:7860", f"http://127.0.0.1:{upstream}"), ("location /label/ {", f"location {location} {{"),
    ):  # fmt: skip
        assert there in shipped
        shipped = shipped.replace(there, here)
    (folder / "site.conf").write_text(shipped)
    paths = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}} "
    (folder / "nginx.conf").write_text(f"{whole} http {{ access_log off; {paths} include {folder}/site.conf; }}")
    with proxy(port, [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)]):
        yield f"https://localhost:{port}"


@contextmanager
def behind_caddy(folder: Path, upstream: int, path: str = "") -> Iterator[str]:
    """deploy/Caddyfile as it is shipped, without a certificate.

    Args:
        path: the only one that is passed on, as the file's first lines explain.
    """
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("deploy/Caddyfile is not tested here: no caddy")
    port, file = free_port(), REPOSITORY / "deploy/Caddyfile"
    if path:
        before, block, after = re.split(r"(\n\treverse_proxy .*?\n\t}\n)", file.read_text(), flags=re.DOTALL)
        file = folder / "Caddyfile"
        file.write_text(f"{before}\n\thandle {path} {{{block}\t}}\n{after}")
    site = f"http://localhost:{port}"
    environment = {
        **os.environ, "DOMAIN": site, "LABEL_SERVER": f"127.0.0.1:{upstream}",
        "CADDY_ADMIN": f"127.0.0.1:{free_port()}", "HOME": str(folder), "XDG_DATA_HOME": str(folder),
    }  # fmt: skip
    command = [program, "run", "--adapter", "caddyfile", "--config", str(file)]
    with proxy(port, command, environment):
        yield site


@contextmanager
def proxy(port: int, command: list[str], environment: dict[str, str] | None = None) -> Iterator[None]:
    """A proxy that runs, from when it listens."""
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(2_000):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(600)


def upload_pairs(client: httpx.Client) -> None:
    """A lead uploads 1.2 MB of pairs, which only a lead may do."""
    rows = [{"prompt": f"question {n}?", "response_a": "a" * 30_000, "response_b": "b"} for n in range(40)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert len(content) > 1_100_000
    address = "/label/api/lead/pairs/upload?name=pairs.jsonl&batch=&preview=true"
    login = {"username": "lead", "password": PASSWORD}
    reply = client.post("/label/api/login", json=login)
    headers = {"X-CSRF-Token": reply.json()["csrf_token"], "Content-Type": "application/octet-stream"}
    found = client.post(address, content=content, headers=headers)
    assert (found.status_code, found.json()["new"]) == (200, len(rows))


def a_client_sets_no_forwarded_header(site: str, log: Path) -> None:
    """The server believes the proxy, and the proxy nobody: neither an address, a host nor a scheme that a client names."""
    elsewhere = httpx.HTTPTransport(local_address="127.0.0.2", verify=False)
    https = site.startswith("https://")
    headers = {**FAKED, "X-Forwarded-Proto": "http" if https else "https"}
    with httpx.Client(base_url=site, transport=elsewhere, headers=headers, timeout=600) as client:
        login = {"username": "anna", "password": PASSWORD}
        reply = client.post("/label/api/login", json=login, headers={"Origin": site})
        assert reply.status_code == 200
        cookies = reply.headers.get_list("set-cookie")
        assert cookies
        assert all(("secure" in one.lower()) is https and "path=/label/" in one.lower() for one in cookies)
        assert reply.headers.get("strict-transport-security") == ("max-age=31536000" if https else None)
        assert json.loads(log.read_text().splitlines()[-1])["address"] == "127.0.0.2"
        settings = client.get("/label/login/config")
        assert settings.json()["root"] == f"{site}/label/login"
        assert "evil.example" not in settings.text


def the_rest_passes_as_it_is(site: str, direct: str) -> None:
    """Pages, and a reply that is written bit by bit; not large bodies that no lead sends, and nothing is upgraded."""
    with httpx.Client(base_url=site, verify=False, timeout=600) as client, httpx.Client(base_url=direct) as server:
        for one in (client, server):
            assert one.post("/label/api/login", json={"username": "lead", "password": PASSWORD}).status_code == 200
        page = client.get("/label/lead/")
        assert (page.status_code, page.headers["content-encoding"], "</html>" in page.text) == (200, "gzip", True)
        assert "script-src 'self'" in page.headers["content-security-policy"]
        rows = client.get("/label/api/lead/audit.csv")
        assert rows.text.splitlines()[0] == server.get("/label/api/lead/audit.csv").text.splitlines()[0]
        assert len(rows.text.splitlines()) > 3
        assert client.get("/label/lead/", headers=UPGRADE).status_code in (200, 403)
        body = b"x" * 1_200_000
        assert client.post("/label/api/judgments", content=body).status_code == 413
        with httpx.Client(base_url=site, verify=False, timeout=600) as stranger:
            upload = stranger.post("/label/api/lead/media?name=a.png", content=body)
        assert (upload.status_code, OURS in upload.headers) == (413, True), "the server refuses it, not the proxy"


@pytest.mark.slow
def test_logins_and_uploads_work_behind_the_proxies_as_they_are_shipped(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/label.sqlite", create=True)
    for name, role in (("anna", "rater"), ("lead", "lead")):
        add_account(store, name, role, PASSWORD)
    store.close()
    log = tmp_path / "security.jsonl"
    words = ("--prefix", "/label", "--hosts", "labels.example.org", "--security-log", str(log))
    with serving(tmp_path, [make_pair(0)], *words) as (address, _):
        upstream = int(address.rsplit(":", 1)[1])
        with behind_caddy(tmp_path, upstream) as site, httpx.Client(base_url=site, timeout=600) as client:
            upload_pairs(client)
            a_client_sets_no_forwarded_header(site, log)
            the_rest_passes_as_it_is(site, address)
        with behind_caddy(tmp_path, upstream, "/label/*") as site, httpx.Client(base_url=site, timeout=600) as client:
            assert [OURS in client.get(path).headers for path in ("/label/login/", "/login/")] == [True, False]
        with behind_nginx(tmp_path, upstream) as site, httpx.Client(base_url=site, verify=False, timeout=600) as client:
            first = client.get("/label/rate/")
            assert (first.status_code, first.headers["location"]) == (303, "/label/login/")
            assert OURS not in client.get("/rate/").headers, "only the path is passed on"
            login = {"username": "anna", "password": PASSWORD}
            reply = client.post("/label/api/login", json=login, headers={"Origin": site})
            assert reply.status_code == 200
            assert client.get("/label/rate/").status_code == 200
            pair = client.get("/label/api/next").json()
            body = {"client_id": "c", "pair_id": pair["pair_id"], "answer": 1}
            token = {"X-CSRF-Token": reply.json()["csrf_token"]}
            assert client.post("/label/api/judgments", json=body, headers={**token, "Origin": site}).status_code == 200
            foreign = {**token, "Origin": "https://evil.example"}
            assert client.post("/label/api/judgments", json=body, headers=foreign).status_code == 403
            upload_pairs(client)
            a_client_sets_no_forwarded_header(site, log)
            the_rest_passes_as_it_is(site, address)
        with behind_nginx(tmp_path, upstream, "/") as site, httpx.Client(base_url=site, verify=False) as client:
            upload = client.post("/api/lead/media?name=a.png", content=b"x" * 1_200_000, timeout=600)
            assert (upload.status_code, OURS in upload.headers) == (413, True)


def test_caddy_takes_its_file() -> None:
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("deploy/Caddyfile is not tested here: no caddy")
    environment = {**os.environ, "DOMAIN": "labels.example.org"}
    command = [program, "validate", "--adapter", "caddyfile", "--config", str(REPOSITORY / "deploy/Caddyfile")]
    subprocess.run(command, env=environment, check=True, capture_output=True)


def test_traefiks_files_lead_to_the_server_and_pass_on_what_it_takes() -> None:
    static = yaml.safe_load((REPOSITORY / "deploy/traefik.yaml").read_text())
    template = (REPOSITORY / "deploy/traefik-routes.yaml").read_text()
    http = yaml.safe_load(template.replace('{{ env "DOMAIN" }}', "labels.example.org"))["http"]
    routers, services = http["routers"], http["services"]
    for router in routers.values():
        assert set(router["entryPoints"]) <= static["entryPoints"].keys()
        assert router["rule"].startswith("Host(`labels.example.org`)")
        assert set(router.get("middlewares", [])) <= http["middlewares"].keys()
        (server,) = services[router["service"]]["loadBalancer"]["servers"]
        assert server == {"url": f"http://label:{LabelConfig.model_fields['port'].default}"}
    assert "label" in SERVICES
    assert http["middlewares"]["small-requests"]["buffering"]["maxRequestBodyBytes"] >= MAX_BODY_BYTES
    assert "middlewares" not in routers["label-files"]
    large = re.search(r"PathRegexp\(`(.*)`\)", routers["label-files"]["rule"])
    assert large is not None
    taken = [f"{prefix}{path}" for prefix in ("", "/label", "/label/c/law") for path in (*UPLOADS, "/api/judgments")]
    assert {path.split("/api/")[1] for path in taken if re.search(large[1], path)} == {
        path.removeprefix("/api/") for path in UPLOADS
    }
    https = static["entryPoints"]["https"]
    assert int(https["transport"]["respondingTimeouts"]["readTimeout"].removesuffix("s")) >= MAX_UPLOAD_SECONDS
    assert https["http"]["tls"]["certResolver"] in static["certificatesResolvers"]
    assert not any("forwardedHeaders" in one for one in static["entryPoints"].values())  # nobody's headers are believed
    (name, changed), *others = yaml.safe_load((REPOSITORY / "deploy/compose.traefik.yaml").read_text())[
        "services"
    ].items()
    assert (name in SERVICES, others) == (True, [])
    mounted = dict(volume.split(":")[:2] for volume in changed["volumes"])
    assert all((REPOSITORY / file).is_file() for file in mounted)
    assert static["providers"]["file"]["filename"] in mounted.values()
    assert "/etc/traefik/traefik.yaml" in mounted.values()  # where Traefik looks for its file
    assert static["certificatesResolvers"]["letsencrypt"]["acme"]["storage"].startswith("/data/")  # a volume


def test_a_backup_that_fails_leaves_no_file_that_looks_like_one(tmp_path: Path) -> None:
    if shutil.which("pg_dump") is None:
        pytest.skip("no pg_dump")
    environment = {**os.environ, "PGHOST": str(tmp_path), "BACKUP_FOLDER": str(tmp_path)}
    script = REPOSITORY / "deploy" / "backup.sh"
    assert subprocess.run(["sh", script, "once"], env=environment, check=False, capture_output=True).returncode
    assert list(tmp_path.glob("*.dump")) == []
