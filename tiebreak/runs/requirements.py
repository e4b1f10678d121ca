"""Requirements of a stage on the data that its input was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tiebreak.errors import HandoffError
from tiebreak.runs.chain import manifest_chain
from tiebreak.runs.run import MANIFEST

Requirement = Literal["anonymised"]
ANONYMISED = "anonymised"
"""the fact in the manifest of a prepare run with the step `anonymise`: how, and whether names were looked for"""


def require(requirements: Sequence[Requirement], source: str) -> None:
    """Refuse an input that does not meet the requirements.

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
        if fault := _fault(manifest):
            raise HandoffError(f"require: anonymised: {folder} {fault}: {_REMEDY}")
    if not any(manifest["stage"] == "prepare" for _, manifest in chain):
        raise HandoffError(f"require: anonymised: {source} was not made from a prepare run: {_REMEDY}")


_REMEDY = "prepare the rows with 'steps: [anonymise]', and make the later runs from that"


def _fault(manifest: dict[str, Any]) -> str:
    """Why rows of a run may hold personal data; otherwise empty."""
    if manifest["stage"] == "prepare":
        return "" if manifest.get(ANONYMISED) else "was prepared without the step anonymise"
    rows = ("prompts", "demonstrations", "preferences", "pairs", "judgments")
    raw = [
        one["source"]
        for name, one in manifest["inputs"].items()
        if one["kind"] != "run" and (name.startswith(rows) or str(one["source"]).startswith("hub:"))
    ]
    return f"read rows from {', '.join(raw)}" if raw else ""
