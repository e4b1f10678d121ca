"""What W&B receives of a run folder: rows, final figures, tables, files, and names. Imports no W&B."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = "wandb"
"""of a run folder; W&B's own name for it"""
FACTS_FILE, STATE_FILE = "tiebreak.json", "state.json"
ALERTS = "alerts.jsonl"
"""file of a run folder with the monitors' alerts"""
MOST_ROWS = 2000
"""of a table"""
STEP = "train/global_step"
SECONDS, TOKENS = "train/step_seconds", "train/tokens_per_second"
KL_OF = {
    "train/objective/scores": "train/objective/kl",
    "eval/objective/scores": "eval/objective/kl",
    "train/guard/score": "train/objective/kl",
}
"""figures that W&B draws against the policy's KL: how much score it bought for how much change"""
SUMMARIES = "min,max,last"
_NO_FIGURES = {
    "config", "inputs", "outputs", "packages", "model", "fingerprint", "stage", "metrics", "id", "format", "processes",
    "distributed", "global_batch",
}  # fmt: skip
"""of a manifest, or in W&B's configuration"""
_INPUTS = re.compile(r"[^/]+/(source|id)")
"""in figures by policy"""
_SAME_IN_REPORT = (
    (re.compile(r"policies/(.+)/rubric_(mean|interval.*)"), r"policies/\1/yardstick_\2"),
    (re.compile(r"policies/(.+)/win_rate_vs_[^/]+"), r"policies/\1/win_rate_vs_baseline"),
)
_SAME_IN_MANIFEST = (
    (re.compile(r"policies/(.+)/rubric_(mean|interval.*)"), r"\1/yardstick_\2"),
    (re.compile(r"policies/(.+)/win_rate_vs_[^/]+"), r"\1/win_rate_vs_baseline"),
    (re.compile(r"[^/]+/(.+)"), r"\1"),
    (re.compile(r"(.+)/total"), r"\1"),
    (re.compile(r"(?:habits|people)/(.+)/value"), r"\1"),
    (re.compile(r"people/calibration/ece"), "ece"),
    (re.compile(r"injection/value"), "injections_obeyed"),
    (re.compile(r"calibration/before/ece"), "held_out_ece"),
    (re.compile(r"calibration/after/ece"), "held_out_ece_calibrated"),
    (re.compile(r"(.+)"), r"held_out_\1"),
    (re.compile(r"(.+)"), r"data/\1"),
)
"""name in a report → the same figure's name there, or in the manifest"""

Row = dict[str, Any]
Table = tuple[list[str], list[list[Any]]]
"""columns and rows"""


# --- rows ---


def row_of(row: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Row:
    """A row of metrics.jsonl under the names that transformers uses in W&B.

    Args:
        before: the last row with a count of trained tokens, to compute tokens a second of the whole launch.
    """
    named = {wandb_name(key): value for key, value in row.items() if key not in ("step", "step_seconds")}
    rate = tokens_per_second(row, before or {})
    return (
        named
        | ({SECONDS: row["step_seconds"]} if row.get("step_seconds") is not None else {})
        | ({TOKENS: rate} if rate is not None else {})
        | {STEP: row["step"]}
    )


def tokens_per_second(row: Mapping[str, Any], before: Mapping[str, Any]) -> float | None:
    """Tokens trained on between two rows, per second; of PPO, tokens of the sampled answers. None if they are not counted.

    >>> tokens_per_second({"step": 4, "num_tokens": 900, "step_seconds": 0.5}, {"step": 2, "num_tokens": 500})
    400.0
    >>> row = {"step": 8, "episode": 32, "completions/mean_length": 50.0, "step_seconds": 20.0}
    >>> tokens_per_second(row, {}), tokens_per_second({**row, "step": 16, "episode": 64}, row)
    (10.0, 10.0)
    """
    steps, seconds = row["step"] - before.get("step", 0), row.get("step_seconds")
    if not seconds or steps <= 0:
        return None
    if row.get("num_tokens") is not None:
        tokens = row["num_tokens"] - before.get("num_tokens", 0)
    elif row.get("episode") is not None and row.get(_ANSWER_LENGTH) is not None:
        tokens = (row["episode"] - before.get("episode", 0)) * row[_ANSWER_LENGTH]
    else:
        return None
    return float(tokens / (steps * seconds))


_ANSWER_LENGTH = "completions/mean_length"


def counts_tokens(row: Mapping[str, Any]) -> bool:
    """Whether `tokens_per_second` of later rows counts from this one."""
    return row.get("num_tokens") is not None or row.get("episode") is not None


def wandb_name(key: str) -> str:
    """eval_loss becomes eval/loss, loss becomes train/loss."""
    return f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}"


# --- final figures ---


def summary_of(folder: Path, manifest: Mapping[str, Any], *, aggregated: bool = True) -> Row:
    """A run's final figures. Nothing is in it twice.

    Args:
        aggregated: W&B summarises logged figures itself, as min, max and last. A logged figure is then left out, unless
            that of the saved policy is not the last one: it is `kept/NAME`.
    """
    last: Row = {}
    for row in read_rows(folder / "metrics.jsonl"):
        last |= {key: value for key, value in row.items() if value is not None}
    figures = {"manifest_id": manifest["id"]}
    for key, value in flat(manifest.get("metrics") or {}).items():
        if key not in last:
            figures[key] = value
        elif not aggregated:
            figures[wandb_name(key)] = value
        elif last[key] != value:
            figures[f"kept/{wandb_name(key)}"] = value
    figures |= flat({key: value for key, value in manifest.items() if key not in _NO_FIGURES})
    figures = {key: value for key, value in figures.items() if not _INPUTS.fullmatch(key)}
    report = read_json(folder / "report.json") or read_json(folder / "final" / "report.json")
    configured = flat(manifest.get("config") or {})
    return _figures_of_report(report, figures, configured) | figures


def _figures_of_report(report: Mapping[str, Any], figures: Row, configured: Row) -> Row:
    """A report's figures and verdicts that are neither among the manifest's, under whatever name, nor settings."""
    found = flat(report, depth=6)
    wanted: Row = {}
    for key, value in found.items():
        if isinstance(value, str) and not key.startswith(_VERDICTS):
            continue
        elsewhere = [figures.get(key), configured.get(key), *_elsewhere(key, _SAME_IN_MANIFEST, figures)]
        if value not in elsewhere and value not in _elsewhere(key, _SAME_IN_REPORT, found):
            wanted[f"report/{key}"] = value
    return wanted


def _elsewhere(key: str, names: Sequence[tuple[re.Pattern[str], str]], figures: Row) -> list[Any]:
    """What figures have under other names of a key."""
    others = (pattern.sub(name, key) for pattern, name in names if pattern.fullmatch(key))
    return [figures[name] for name in others if name != key and name in figures]


_VERDICTS = ("headline/claim", "headline/verdicts/", "headline/claims/")


def flat(values: Mapping[str, Any], depth: int = 4, prefix: str = "") -> Row:
    """Numbers and strings of nested mappings, by path; lists are left out, except intervals: NAME_low, NAME_high."""
    found: Row = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and depth > 1:
            found |= flat(value, depth - 1, f"{prefix}{key}/")
        elif isinstance(value, (bool, int, float, str)):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, list) and key.endswith("interval") and len(value) == 2:
            found |= {f"{prefix}{key}_{end}": one for end, one in zip(("low", "high"), value, strict=True)}
    return found


# --- tables ---


def tables_in(folder: Path) -> Iterator[tuple[str, Table]]:
    """Tables by name: files of examples, judgments by rater and version of the guidelines, the reward model's worst
    mistakes, an evaluation's answers."""
    beside = [path for path in sorted(folder.glob("*.jsonl")) if path.name != "metrics.jsonl"]
    for path in (*beside, folder / "final" / "completions.jsonl"):
        if path.is_file():
            yield path.stem, table_of(most_telling(read_rows(path)))
    if judged := judgments_by_rater(read_rows(folder / "final" / "judgments.jsonl")):
        yield "judgments", table_of(judged)
    if mistakes := read_json(folder / "report.json").get("worst"):
        yield "worst_mistakes", table_of(mistakes)


def most_telling(rows: Sequence[Row], most: int = MOST_ROWS) -> Sequence[Row]:
    """The rows of a table of at most so many: of answers while training, the latest steps; of an evaluation, all policies'
    answers to a prompt beside each other, and the first prompts.

    >>> rows = [{"policy": policy, "prompt_id": prompt} for policy in ("sft", "dpo") for prompt in (1, 2, 3)]
    >>> [(row["prompt_id"], row["policy"]) for row in most_telling(rows, 5)]
    [(1, 'sft'), (1, 'dpo'), (2, 'sft'), (2, 'dpo')]
    >>> [row["step"] for row in most_telling([{"step": step, "prompt_id": 1} for step in range(4)], 2)]
    [2, 3]
    """
    if not rows or "prompt_id" not in rows[0]:
        return rows[:most]
    by: dict[Any, list[Row]] = {}
    kind = "step" if "step" in rows[0] else "prompt_id"
    for row in rows:
        by.setdefault(row.get(kind), []).append(row)
    kept: list[list[Row]] = []
    for group in reversed(by.values()) if kind == "step" else by.values():
        if kept and sum(map(len, kept)) + len(group) > most:
            break
        kept.append(group)
    if kind == "step":
        kept.reverse()
    return [row for group in kept for row in group]


def judgments_by_rater(judgments: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for each rater and version of the guidelines."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for one in judgments:
        key = (str(one.get("rater_id", "")), str(one.get("guideline_version", "")), str(one.get("kind", "")))
        groups.setdefault(key, []).append(one)
    return [
        {
            "rater": rater,
            "guideline_version": version,
            "kind": kind,
            "judgments": len(own),
            "ties": sum(one.get("answer") == 0 for one in own),
            "both_bad": sum(bool(one.get("both_bad")) for one in own),
            "skips": sum(bool(one.get("skip")) for one in own),
            "seconds_median": _median([one["seconds_active"] for one in own if one.get("seconds_active")]),
        }
        for (rater, version, kind), own in sorted(groups.items())
    ]


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 1) if values else None


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Columns and rows of examples; for a conversation, the last message."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, [[_cell(row.get(column)) for column in columns] for row in rows]


def _cell(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[-1], dict) and "content" in value[-1]:
        return str(value[-1]["content"])
    return value if isinstance(value, (bool, int, float, str, type(None))) else json.dumps(value)


# --- files, names ---


def reports_in(folder: Path) -> list[Path]:
    """Files of reports."""
    names = ("report.html", "report.json", "final/report.json", "final/completions.jsonl")
    return [folder / name for name in names if (folder / name).is_file()]


def model_files(folder: Path) -> list[Path]:
    """The files of a trained run's model, without a merged copy; none of a stage that trains nothing."""
    final = folder / "final"
    files = [path for path in sorted(final.glob("*")) if path.is_file() and not path.name.startswith(".")]
    return files if any(path.suffix == ".safetensors" for path in files) else []


def artifact_name(folder: Path) -> str:
    """The folder's artifact name: a stage that is run again becomes its next version."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(folder.resolve().parts[-2:]))[-100:]


def best_policy(folder: Path) -> str:
    """The policy with the highest mean in an evaluation, by its name there; empty where nothing was evaluated."""
    policies = read_json(folder / "final" / "report.json").get("policies")
    if not isinstance(policies, dict):
        return ""
    means = {name: one.get("yardstick_mean") for name, one in policies.items() if isinstance(one, dict)}
    measured = {name: mean for name, mean in means.items() if isinstance(mean, int | float)}
    return max(measured, key=lambda name: measured[name], default="")


def in_order(folders: Sequence[Path]) -> list[Path]:
    """Folders of runs, each behind those that it was made from."""
    records = {folder: read_json(folder / "manifest.json") for folder in dict.fromkeys(folders)}
    by_id = {record["id"]: folder for folder, record in records.items() if "id" in record}
    ordered: dict[Path, None] = {}

    def place(folder: Path) -> None:
        for one in (records[folder].get("inputs") or {}).values():
            if (source := by_id.get(one.get("id"))) not in (None, folder) and source not in ordered:
                place(source)
        ordered.setdefault(folder)

    for folder in records:
        place(folder)
    return list(ordered)


# --- reading ---


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a JSON Lines file; [] if it is missing."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows


def read_json(path: Path) -> Row:
    """A file's JSON; {} if it is missing or incomplete."""
    try:
        return read_line(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


class NewRows:
    """The rows that a run's metrics.jsonl has got since the last look, each with its names for a tracker.

    An incomplete line waits for its end; one that was cut off and written on is left out.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"
        self._offset = 0
        self._counted: Row = {}
        """the last row with a count of tokens"""

    def __iter__(self) -> Iterator[tuple[Row, Row]]:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                row = read_line(line.decode("utf-8", errors="replace"))
                if "step" not in row:
                    continue
                named = row_of(row, self._counted)
                self._counted = row if counts_tokens(row) else self._counted
                yield row, named


class NewAnswers:
    """The answers to held-out prompts in a run's completions.jsonl, to which every evaluation adds."""

    name = "completions"

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{self.name}.jsonl"
        self._size = 0
        self._rows: list[Row] = []
        self._latest = -1

    def until(self, step: int) -> list[Row]:
        """All answers up to a step, if there are some that no earlier call gave; else []."""
        size = self._path.stat().st_size if self._path.is_file() else 0
        if size != self._size:
            self._size, self._rows = size, [row for row in read_rows(self._path) if "step" in row]
        rows = [row for row in self._rows if row["step"] <= step]
        before, self._latest = self._latest, max((row["step"] for row in rows), default=self._latest)
        return rows if self._latest > before else []


def read_line(text: str) -> Row:
    """A JSON object; {} if the text is not one."""
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}
