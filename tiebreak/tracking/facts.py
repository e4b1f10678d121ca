"""A run's metadata for W&B, and whether to copy it there: from its configuration and W&B's own variables."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiebreak.config import TrackingConfig
from tiebreak.runs.audit import COMMAND
from tiebreak.runs.run import MANIFEST, RUN_FILE, Run, git_commit
from tiebreak.tracking.contents import FACTS_FILE, FOLDER, artifact_name, read_json


def wanted_mode(run: Run) -> str:
    """`disabled`, `offline` or `online` from configuration or environment; otherwise `auto`: online if W&B has a login."""
    if run.config.tracking.mode != "auto":
        return run.config.tracking.mode
    named = {"dryrun": "offline", "run": "online", "shared": "online"}
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    if not mode and os.environ.get("WANDB_DISABLED", "").strip().lower() in ("1", "on", "yes", "true"):
        return "disabled"  # transformers' variable
    mode = named.get(mode, mode)
    return mode if mode in ("online", "offline", "disabled") else "auto"


def _run_id(asked: str) -> str:
    """A run's id in characters that W&B takes."""
    return re.sub(r"[:;,#?/'\s]", "-", asked.strip()) or secrets.token_hex(4)


def facts_of(run: Run) -> dict[str, Any]:
    """A run's metadata for W&B. Keys of `tracking` that differ from their default override W&B's own variables, which
    override the default; tags are combined."""
    return _facts(run.folder, run.identity.record(run.folder))


def facts_in(folder: Path) -> dict[str, Any]:
    """Those of a run whose folder had no room for W&B's; {} if it has no run."""
    record = read_json(folder / MANIFEST) or read_json(folder / RUN_FILE)
    return _facts(folder, record) if {"stage", "fingerprint", "config", "inputs"} <= record.keys() else {}


def _facts(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    config, environment = record["config"], os.environ
    tracking = TrackingConfig(**config.get("tracking", {}))
    before = read_json(folder / FOLDER / FACTS_FILE)
    before = before if before.get("fingerprint") == record["fingerprint"] else {}
    default = TrackingConfig.model_fields["project"].default
    project = tracking.project if tracking.project != default else environment.get("WANDB_PROJECT") or default
    group = tracking.group or environment.get("WANDB_RUN_GROUP") or environment.get("TIEBREAK_GROUP")
    alone = "TIEBREAK_GROUP" not in environment  # one id cannot identify all stages of a recipe
    round_tag = round_of(folder)
    tags = [record["stage"], *tracking.tags, *environment.get("WANDB_TAGS", "").split(",")]
    tags += _further_tags(config, _adapter_method(folder, record))
    inputs = {key: one for key, one in record["inputs"].items() if one["kind"] == "run"}
    return {
        "fingerprint": record["fingerprint"],
        "run_id": before.get("run_id") or _run_id(environment.get("WANDB_RUN_ID", "") if alone else ""),
        "stage": record["stage"],
        "project": project,
        "group": group or before.get("group"),
        "job_type": environment.get("WANDB_JOB_TYPE") or record["stage"],
        "name": environment.get("WANDB_NAME") or f"{record['stage']}-{record['fingerprint'][:8]}",
        "tags": list(dict.fromkeys(tag.strip()[:64] for tag in (*tags, round_tag) if tag.strip())),
        "notes": environment.get("WANDB_NOTES") or environment.get(COMMAND) or before.get("notes"),
        "config": _by_id(config, record["inputs"])
        | _of_the_launch(record)
        | {"input_ids": {k: v["id"] for k, v in record["inputs"].items()}},
        "artifact": artifact_name(folder),
        "aliases": [round_tag] if round_tag else [],
        "log_model": tracking.log_model or environment.get("WANDB_LOG_MODEL", "").lower() in _LOGS_MODEL,
        "inputs": {artifact_name(Path(one["source"])): one["id"] for one in inputs.values()},
        "keys": {key: artifact_name(Path(one["source"])) for key, one in inputs.items()},
    }


_LOGS_MODEL = ("1", "true", "end", "checkpoint")
"""values of transformers' WANDB_LOG_MODEL"""


def _by_id(config: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The configuration with the ids of runs instead of their paths, except where it writes."""
    ids = {one["source"]: one["id"] for one in inputs.values() if one["kind"] == "run"}

    def named(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: named(one) for key, one in value.items()}
        if isinstance(value, list):
            return [named(one) for one in value]
        return ids.get(value, value) if isinstance(value, str) else value

    return {key: value if key in ("output", "tracking") else named(value) for key, value in config.items()}


def _adapter_method(folder: Path, record: Mapping[str, Any]) -> str:
    """The method of the adapter that is trained: the configured one, or that of the policy, whose training goes on."""
    config = record["config"]
    if "adapter" not in config or config["adapter"]:
        return str((config.get("adapter") or {}).get("method") or "")
    policy = record["inputs"].get("policy") or {}
    places = [Path(policy["source"]), folder / policy.get("path", "")] if policy.get("kind") == "run" else []
    models = (read_json(place / MANIFEST).get("model") or {} for place in places)
    return next((str((one.get("adapter") or {}).get("method") or "") for one in models if one), "")


def _further_tags(config: Mapping[str, Any], adapter: str = "") -> list[str]:
    """Seed, algorithm, adapter and commit; `dirty` if files differ from the commit."""
    seed, commit = (config.get("training") or {}).get("seed", config.get("seed")), git_commit() or ""
    return [
        *([f"seed-{seed}"] if seed is not None else []),
        str(config.get("algorithm") or ""),
        adapter,
        commit,
        *(["dirty"] if commit.endswith("+") else []),
    ]


def _of_the_launch(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("processes", "distributed", "global_batch") if record.get(key) is not None}


def round_of(folder: Path) -> str:
    """`round-N` of a run in the folder of `tiebreak rounds`; otherwise empty.

    >>> round_of(Path("runs/loop/round-2/dpo"))
    'round-2'
    """
    return next((part for part in reversed(folder.resolve().parts) if re.fullmatch(r"round-\d+", part)), "")
