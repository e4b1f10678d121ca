"""The label server in containers: what its files start is there and is taken by the parser, and a dump restores."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from label_support import make_pair
from support import REPOSITORY

from labeling_ui.label import LabelConfig
from labeling_ui.simulate import SimulateConfig, simulate
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from tiebreak.config import load_config

COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


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

    said = call("sh", REPOSITORY / "deploy" / "backup.sh", "once")
    (dump,) = tmp_path.iterdir()
    assert said == f"saved: {dump}\n"
    call("createdb", "restored")
    call("pg_restore", "--dbname", "restored", dump)
    restored = Store.open(url.set(database="restored").render_as_string())
    assert (restored.head(), {**restored.status(), "store": ""}) == before
    assert verify(restored).faults == []
    restored.close()


def test_a_backup_that_fails_leaves_no_file_that_looks_like_one(tmp_path: Path) -> None:
    if shutil.which("pg_dump") is None:
        pytest.skip("no pg_dump")
    environment = {**os.environ, "PGHOST": str(tmp_path), "BACKUP_FOLDER": str(tmp_path)}
    script = REPOSITORY / "deploy" / "backup.sh"
    assert subprocess.run(["sh", script, "once"], env=environment, check=False, capture_output=True).returncode
    assert list(tmp_path.glob("*.dump")) == []
