"""The contents and origin of a run folder.

    tiebreak inspect runs/quickstart/dpo
    tiebreak inspect runs/quickstart/dpo --all
    tiebreak inspect runs/quickstart/compare --chain
    tiebreak inspect runs/quickstart/dpo --json

Every output is hashed again and compared with the manifest; every input is looked up again and compared with its
recorded id. The exit status is 1 if anything has changed. Reads only small files and the outputs' bytes: no model is
loaded.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from tiebreak.command.help import print_help, wants_help
from tiebreak.config import Section, load_config
from tiebreak.errors import ConfigError, RunError, counted
from tiebreak.hashing import hash_file
from tiebreak.process.ending import exit_with_message
from tiebreak.runs import checkpoints
from tiebreak.runs import run as runs
from tiebreak.runs.chain import InputFinder
from tiebreak.runs.placement import Placement
from tiebreak.stages import STAGES, find_stage
from tiebreak.terminal import has_colours, paint, show, table
from tiebreak.terminal.bars import duration

_MADE = ("tiebreak", "git_commit", "packages", "machine", "finished_at", "seconds", "peak_memory_bytes", "energy")
_PLACED = ("processes", "distributed", "global_batch")
_USUAL = ("format", "id", "stage", "fingerprint", *_PLACED, "config", "inputs", "outputs", *_MADE)
"""Entries of every manifest; the rest are the stage's own facts."""
_NOT_FIGURES = ("step", "epoch")


@dataclass(frozen=True)
class InputState:
    """An input as recorded, and its present state: `same`, `changed`, `gone`, or `not checked` (a mere name).

    `moved`: its new place, if it has moved.
    """

    name: str
    source: str
    kind: str
    id: str
    state: str
    moved: str | None = None


@dataclass(frozen=True)
class OutputState:
    """A file of final/: `same`, `changed`, `gone`, or `unknown` (the manifest does not list it)."""

    name: str
    bytes: int | None
    state: str


@dataclass(frozen=True)
class Inspection:
    """Everything reported about one run folder."""

    folder: str
    state: str
    stage: str
    id: str | None
    checkpoint: int | None
    config: dict[str, Any]
    inputs: list[InputState]
    outputs: list[OutputState]
    logged_rows: int
    last_metrics: dict[str, Any]
    facts: dict[str, Any]
    made: dict[str, Any] = field(default_factory=dict)
    placement: dict[str, Any] = field(default_factory=dict)
    """processes, distributed, and the global batch of a stage that trains"""

    @property
    def faults(self) -> list[str]:
        """Changes since the run finished."""
        return [
            *(
                f"input {one.name} ({one.source}) is {one.state}"
                for one in self.inputs
                if one.state in ("changed", "gone")
            ),
            *(f"{one.name} is {one.state}" for one in self.outputs if one.state in ("changed", "gone")),
            *(f"{one.name} is not in the manifest" for one in self.outputs if one.state == "unknown"),
        ]


class InspectArguments(Section):
    """`tiebreak inspect`"""

    as_json: bool = Field(default=False, alias="json")
    """print everything as one JSON document"""
    everything: bool = Field(default=False, alias="all")
    """also print the whole configuration and every output, metric and fact"""
    chain: bool = False
    """also inspect every run that this one was made from"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak inspect`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["inspect", *words]) if wants_help(words) else _inspect(words))


def _inspect(words: list[str]) -> None:
    folders = [word for word in words if not word.startswith("--") and word not in ("true", "false")]
    flags = [word for word in words if word not in folders]
    if len(folders) != 1:
        raise ConfigError(
            "inspect takes one run folder: tiebreak inspect runs/quickstart/dpo [--all] [--chain] [--json]"
        )
    given = load_config(InspectArguments, flags, "inspect")
    inspections = inspect_chain(folders[0]) if given.chain else [inspect_run(folders[0])]
    _print_all(inspections, given)
    if any(one.faults for one in inspections):
        raise SystemExit(1)


def _print_all(inspections: Sequence[Inspection], given: InspectArguments) -> None:
    if given.as_json:
        documents = [{**asdict(one), "faults": one.faults} for one in inspections]
        show(json.dumps(documents if len(documents) > 1 else documents[0], indent=2))
        return
    colours = has_colours(sys.stdout)
    for number, one in enumerate(inspections):
        show(*([""] if number else []), *summary(one, colours), *(details(one) if given.everything else []))
    if not given.everything:
        show("", f"everything else: tiebreak inspect {shlex.quote(inspections[-1].folder)} --all")


# --- reading ---


def inspect_run(folder: str) -> Inspection:
    """One run folder, finished or not.

    Raises:
        RunError: it is not a run folder; the message says what it is.
    """
    path = Path(folder)
    if not (path / runs.MANIFEST).is_file() and not (path / runs.RUN_FILE).is_file():
        raise RunError(_what_instead(path))
    finished = (path / runs.MANIFEST).is_file()
    record = runs.read_manifest(path) if finished else runs.read_run_file(path)
    rows = runs.read_metrics(path)
    checkpoint = None if finished else _newest_checkpoint(path)
    return Inspection(
        folder=folder,
        state="finished" if finished else _unfinished_state(path, checkpoint),
        stage=str(record["stage"]),
        id=record.get("id"),
        checkpoint=checkpoint,
        config=record["config"],
        inputs=_look_up(folder, record),
        outputs=_outputs(path, record.get("outputs") or {}) if finished else [],
        logged_rows=len(rows),
        last_metrics=last_metrics(rows),
        facts={key: value for key, value in record.items() if key not in _USUAL} if finished else {},
        made={key: record.get(key) for key in _MADE} if finished else {},
        placement={key: record[key] for key in _PLACED if record.get(key) is not None},
    )


def inspect_chain(folder: str) -> list[Inspection]:
    """A run and every run it was made from, inputs first, each once."""
    found: dict[str, Inspection] = {}

    def walk(where: str) -> None:
        key = str(Path(where).resolve())
        if key in found:
            return
        one = inspect_run(where)
        found[key] = one
        for place in (i.moved or i.source for i in one.inputs if i.kind == "run" and i.state != "gone"):
            walk(place)
        found[key] = found.pop(key)  # after its inputs

    walk(folder)
    return list(found.values())


def last_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The newest value of every figure: the last row lacks those that are logged less often."""
    newest: dict[str, Any] = {}
    for row in rows:
        newest |= row
    return newest


def _what_instead(path: Path) -> str:
    if path.is_file():
        return f"{path} is a file: inspect takes a run folder, such as runs/quickstart/dpo"
    if not path.exists():
        return f"no such folder: {path}"
    inside = sorted(p.parent for p in path.glob("*/" + runs.RUN_FILE))
    if inside:
        return f"{path} is not a run folder, but holds some: give one of {', '.join(map(str, inside))}"
    return f"{path} is not a run folder: it has neither {runs.MANIFEST} nor {runs.RUN_FILE}"


def _newest_checkpoint(path: Path) -> int | None:
    found = (one for one in checkpoints.marked(path / "checkpoints") if not checkpoints.fault_of(one))
    return next((checkpoints.step_of(one) for one in found), None)


def _unfinished_state(path: Path, checkpoint: int | None) -> str:
    if runs.is_locked(path):
        return "being written" + (f", checkpoint {checkpoint}" if checkpoint is not None else "")
    return (
        "interrupted before its first checkpoint" if checkpoint is None else f"interrupted at checkpoint {checkpoint}"
    )


def _look_up(folder: str, record: Mapping[str, Any]) -> list[InputState]:
    finder, states = InputFinder(), []
    for name, one in record["inputs"].items():
        found = finder.find(folder, record, one)
        source, moved = str(one["source"]), found.place if found.place not in (None, one["source"]) else None
        states.append(InputState(name, source, str(one["kind"]), str(one["id"]), found.state, moved))
    return states


def _outputs(path: Path, recorded: Mapping[str, str]) -> list[OutputState]:
    states = []
    for name, digest in recorded.items():
        file = path / name
        if file.is_file():
            states.append(OutputState(name, file.stat().st_size, "same" if hash_file(file) == digest else "changed"))
        else:
            states.append(OutputState(name, None, "gone"))
    for file in sorted((path / "final").rglob("*")):
        name = str(file.relative_to(path))
        if file.is_file() and not file.name.startswith(".") and name not in recorded:
            states.append(OutputState(name, file.stat().st_size, "unknown"))
    return states


# --- output ---

FIGURES_SHOWN = 5


def summary(one: Inspection, colours: bool = False) -> list[str]:
    """A run's summary: state, inputs, up to five figures, and whether it is unchanged."""
    state = paint(one.state, "green" if one.state == "finished" else "yellow") if colours else one.state
    made = one.made
    rows = [("finished", f"{made['finished_at']}, took {duration(made['seconds'] or 0)}")] if made else []
    inputs = table([(i.name, i.moved or i.source) for i in one.inputs], left=(0, 1), colours=False)
    rows += [("" if number else "made from", line) for number, line in enumerate(inputs)]
    kinds = one.facts.get("kinds")
    rows += [("judged by", ", ".join(map(str, kinds)))] if kinds else []
    rows += figures_of(one)
    unchanged = [output for output in one.outputs if output.state == "same"]
    if one.outputs and not one.faults:
        size = _size(sum(output.bytes or 0 for output in unchanged))
        count = "the one output" if len(unchanged) == 1 else f"all {len(unchanged)} outputs"
        rows.append(("state", f"{count} unchanged, {size}"))
    faults = [f"  {paint('changed', 'red') if colours else 'changed'}: {fault}" for fault in one.faults]
    return [f"{one.folder}: {one.stage}, {state}", *_table(rows), *faults]


def figures_of(one: Inspection) -> list[tuple[str, str]]:
    """The stage's main metrics; otherwise the first of each group in its manifest, or its plain counts."""
    named = find_stage(one.stage).metrics if one.stage in STAGES else {}
    logged = [(name, _value(one.last_metrics[key])) for key, name in named.items() if key in one.last_metrics]
    recorded: list[tuple[str, str]] = []
    for group in (one.facts.get("metrics"), one.facts.get("counts")):
        for key, value in group.items() if isinstance(group, Mapping) else ():
            if isinstance(value, Mapping) and value:
                first = next(iter(value))
                recorded.append((f"{key} {first}", _value(value[first])))
            elif not isinstance(value, Mapping):
                recorded.append((key, _value(value)))
    counts = [(key, _value(value)) for key, value in one.facts.items() if type(value) is int]
    return (logged or recorded or counts)[:FIGURES_SHOWN]


def details(one: Inspection) -> list[str]:
    """The rest: ids, code, every output, the configuration, all metrics and facts."""
    lines = ["", *_table([("id", one.id or "-"), *_made(one.made), *_placed(one.placement)])]
    if one.inputs:
        lines += ["", "made from", *_table([(i.name, _input_words(i)) for i in one.inputs])]
    if one.outputs:
        outputs = [(o.name, f"{_size(o.bytes)}  {_OUTPUT_WORDS[o.state]}") for o in one.outputs]
        lines += ["", "outputs", *_table(outputs)]
    if one.config:
        lines += ["", "configuration", *_table(_flat(one.config))]
    if one.last_metrics:
        step = one.last_metrics.get("step")
        figures = [(k, _value(v)) for k, v in sorted(one.last_metrics.items()) if k not in _NOT_FIGURES]
        lines += ["", f"last metrics ({counted(one.logged_rows, 'row')}, step {_value(step)})", *_table(figures)]
    if one.facts:
        lines += ["", "facts", *_table(_flat(one.facts))]
    return lines


def _input_words(one: InputState) -> str:
    if one.kind == "name":
        return one.source
    moved = f", now {one.moved}" if one.moved else ""
    return f"{one.source}  ({one.kind}, {one.id[:12]}: {one.state}{moved})"


_OUTPUT_WORDS = {"same": "same hash", "changed": "CHANGED", "gone": "GONE", "unknown": "not in the manifest"}


def _made(made: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not made:
        return []
    packages = ", ".join(f"{name} {version}" for name, version in (made.get("packages") or {}).items())
    cost = f"{_value(made.get('seconds'))} s, peak memory {_size(made.get('peak_memory_bytes'))}"
    energy = made.get("energy") or {}
    kwh = energy.get("kwh")
    used = "not measured" if kwh is None else f"{_value(kwh)} kWh ({energy['measured']})"
    rows = [("machine", str(made.get("machine") or "-")), ("took", cost), ("energy", used)]
    code = f"tiebreak {made.get('tiebreak') or '-'}, commit {made.get('git_commit') or '-'}"
    return [*rows, ("code", code), *([("packages", packages)] if packages else [])]


def _placed(placement: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "processes" not in placement:
        return []
    where = str(Placement(placement["processes"], placement.get("distributed", "none")))
    rows = placement.get("global_batch")
    return [("processes", where + (f", global batch {rows}" if rows else ""))]


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = min(max((len(name) for name, _ in rows), default=0), 44)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _value(value)))
    return rows


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else "-" if value is None else json.dumps(value, ensure_ascii=False)
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:157]}..."


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


if __name__ == "__main__":
    main()
