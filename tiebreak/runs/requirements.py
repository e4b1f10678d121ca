"""Requirements of a stage on the data that its input was made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tiebreak.errors import HandoffError
from tiebreak.hashing import hash_file
from tiebreak.runs.chain import manifest_chain
from tiebreak.runs.run import MANIFEST
from tiebreak.terminal import say

Requirement = Literal["anonymised"]
ANONYMISED = "anonymised"
"""the fact in the manifest of a prepare run with the step `anonymise`: how, and what was not looked for"""
SOUGHT = "sought"
"""names of people were looked for"""
_NO_ROWS = (
    *(
        "policy",
        "reward_model",
        "value_head",
        "guard.reward_model",
        "rewards",
        "model",
        "judge",
        "yardstick",
        "function",
    ),
    *("chat_template", "test_set", "names_model", "words", "steps", "benchmark", "monitors", "evaluation", "simulate"),
)
"""beginnings of the names of inputs that bring no rows: models, functions, and what rows are only compared with"""


def require(requirements: Sequence[Requirement], source: str) -> None:
    """Refuse an input that does not meet the requirements, and report what its preparation did not look for.

    `anonymised`: every run of *prepare* behind it has the step, and no later run read rows from anywhere else.

    Raises:
        HandoffError: says which data is at fault, and what to do.
    """
    if ANONYMISED not in requirements:
        return
    if not (Path(source) / MANIFEST).is_file():
        raise HandoffError(
            f"require: anonymised: {source} is not a finished run, so nobody knows what is in it: {_REMEDY}"
        )
    chain = manifest_chain(source)
    for folder, manifest in chain:
        _refuse_changed(folder, manifest)
        if fault := _fault(manifest):
            raise HandoffError(f"require: anonymised: {folder} {fault}: {_REMEDY}")
    if not any(manifest["stage"] == "prepare" for _, manifest in chain):
        raise HandoffError(f"require: anonymised: {source} was not made from a prepare run: {_REMEDY}")
    for remark in remarks(chain):
        say(remark)


def remarks(chain: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """What the prepare runs of a chain did not look for, though they have the step."""
    return [
        f"{folder}: {remark}"
        for folder, manifest in chain
        if manifest.get(ANONYMISED)
        for remark in _remarks(manifest[ANONYMISED])
    ]


def _remarks(how: dict[str, str]) -> Iterator[str]:
    if how.get("names", SOUGHT) != SOUGHT:
        yield how["names"]
    if "kinds" in how:
        yield f"only {how['kinds']} was looked for (anonymise.kinds)"


_REMEDY = "prepare the rows with 'steps: [anonymise]', and make the later runs from that"


def _refuse_changed(folder: str, manifest: dict[str, Any]) -> None:
    """Rows that were put into a finished run have been through nothing."""
    for name, digest in manifest.get("outputs", {}).items():
        path = Path(folder) / name
        if path.suffix == ".jsonl" and path.is_file() and hash_file(path) != digest:
            raise HandoffError(
                f"require: anonymised: {path} was changed after its run was finished, so nobody knows what is in it: run "
                f"'tiebreak {manifest['stage']}' again"
            )


def _fault(manifest: dict[str, Any]) -> str:
    """Why rows of a run may hold personal data; otherwise empty."""
    if manifest["stage"] == "prepare":
        return "" if manifest.get(ANONYMISED) else "was prepared without the step anonymise"
    raw = [
        one["source"]
        for name, one in manifest["inputs"].items()
        if one["kind"] != "run" and (not name.startswith(_NO_ROWS) or str(one["source"]).startswith("hub:"))
    ]
    return f"read rows from {', '.join(raw)}" if raw else ""
