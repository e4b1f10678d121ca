"""Stores of both kinds: a SQLite file, and a schema of its own on a Postgres server that the tests start."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from argon2 import PasswordHasher
from label_support import free_port

from labeling_ui.database.schema import build_engine

BACKENDS = ("sqlite", "postgres")


@pytest.fixture(scope="session", autouse=True)
def _cheap_passwords() -> Iterator[None]:
    """Five logins make most campaigns here: at the cost of a real password, hashing took a quarter of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "labeling_ui.web.login.accounts._HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
        )
        yield


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a store that is not there yet, on either database. Whatever is opened is closed at the end."""
    engines: list[sa.Engine] = []

    def remember(address: str) -> sa.Engine:
        engines.append(build_engine(address))
        return engines[-1]

    monkeypatch.setattr("labeling_ui.store.store.build_engine", remember)
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/labels.sqlite"
    else:
        new_schema: Callable[[], str] = request.getfixturevalue("postgres")
        yield new_schema()
    for engine in engines:
        engine.dispose()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes URLs of empty schemas on a server of the tests' own."""
    programs = _find_programs()
    if programs is None:
        pytest.skip("Postgres is not tested here: no initdb (Debian: apt install postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("Postgres is not tested here: no driver (pip install 'psycopg[binary]')")
    folder, port = Path(tempfile.mkdtemp(prefix="tiebreak-postgres-")), free_port()
    server = _Server(programs, folder, port)
    try:
        server.start()
        yield server.new_schema
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _find_programs() -> Path | None:
    """The folder of `initdb`: on the path, or where Debian keeps it."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in folders if (one / "initdb").exists() and (one / "pg_ctl").exists()), None)


class _Server:
    """A server on a loopback port that forgets everything: what it keeps is not synced to the disk."""

    def __init__(self, programs: Path, folder: Path, port: int) -> None:
        self._programs, self._folder, self._port = programs, folder, port
        self._schemas = itertools.count()
        self._address = f"postgresql+psycopg://tiebreak@127.0.0.1:{port}/postgres"

    def start(self) -> None:
        data = str(self._folder / "data")
        if os.geteuid() == 0:  # Postgres refuses root
            shutil.chown(self._folder, "postgres")
        self._run("initdb", "-D", data, "-A", "trust", "-U", "tiebreak", "--no-sync", "-E", "UTF8", "--locale=C")
        settings = f"-p {self._port} -h 127.0.0.1 -k {self._folder} -c fsync=off -c deadlock_timeout=100ms"
        self._run("pg_ctl", "-D", data, "-w", "-l", str(self._folder / "log"), "-o", settings, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "stop", check=False)

    def new_schema(self) -> str:
        name = f"store_{next(self._schemas)}"
        engine = sa.create_engine(self._address)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        engine.dispose()
        return f"{self._address}?options=-csearch_path%3D{name}"

    def _run(self, program: str, *words: str, check: bool = True) -> None:
        become = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*become, str(self._programs / program), *words]
        subprocess.run(command, check=check, stdout=subprocess.DEVNULL, cwd="/", timeout=600)
