"""The data report: distributions by hand, the flow of the rows, and the licences of the sources."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import read_rows, write_rows

from sft.configuration import PrepareConfig
from sft.distributions import added, counted_rows, distributions, moved, stride_of
from sft.licences import licences_of
from sft.prepare import prepare
from sft.report.examples import with_tags
from sft.report.flow import STREAM, flow, stages_of
from tiebreak.messages import Message
from tiebreak.records import Demonstration, Prompt


def demonstration(asked: str, answer: str) -> Demonstration:
    return Demonstration(prompt=Prompt(id="p", messages=(Message(role="user", content=asked),)), completion=answer)


def test_bins_by_hand() -> None:
    first = counted_rows([demonstration("Why is it so?", "It is so.")])  # 7 words
    assert first["words"] == {"1": 1}  # 5 to 10
    assert first["symbols"] == {"8": 1}  # 2 of 17 characters, between .1 and .15
    assert first["repetition"] == {"2": 1}  # `it` and `is` stood there before: 2 of 7
    second = counted_rows([demonstration("Why?", "So."), demonstration("!", "?")])
    assert second["words"] == {"0": 2}
    both = added([first, second])
    assert both["words"][:3] == [2, 1, 0]
    drawn = distributions([first, second], [first])
    assert moved(drawn["words"]) == pytest.approx(2 / 3)
    assert moved({"before": [1, 1], "after": [2, 2]}) == 0
    assert (stride_of(20_000), stride_of(20_001), stride_of(1_000_000)) == (1, 2, 50)


def report(read: int, dropped: list[tuple[str, int]], **more: Any) -> dict[str, Any]:
    return {
        "counts": {"read": {"prompts": read}},
        "steps": [{"step": name, "dropped": count} for name, count in dropped],
        "dropped": {"the same as": 10},
        **more,
    }


def test_widths_are_the_shares_of_the_rows() -> None:
    data = report(100, [("repair", 0), ("language", 20)], usable=90)
    assert stages_of(data) == [("repair", 0), ("language", 20), ("exact duplicates", 10)]
    drawing = str(flow(data))
    assert "Of 100 rows read, 60 are kept. not usable: 10 dropped. repair: 0 dropped. language: 20 dropped." in drawing
    points = re.search(r'<polygon[^>]*points="([^"]+)"', drawing)
    assert points
    edges = [float(one.split(",")[0]) for one in points[1].split()][1:-1]
    assert [round((edge - 4) / STREAM, 2) for edge in dict.fromkeys(edges)] == [0.9, 0.7, 0.6]
    assert drawing.count("<path") == 3  # a branch for each stage that drops rows
    assert flow({"counts": {"read": {}}, "dropped": {}}) is None


def test_a_tree_of_messages_may_hold_several_rows() -> None:
    assert "Of 150 rows read, 140 are kept" in str(flow(report(100, [], usable=150)))


def test_tags_are_marked_where_no_file_shows_what_was_there() -> None:
    assert with_tags("call <PHONE_1>, <b>") == "call <ins>&lt;PHONE_1&gt;</ins>, <ins>&lt;b&gt;</ins>"


def test_licences_from_the_configuration_or_from_the_file_beside(tmp_path: Path, tiny_model: Path) -> None:
    for name, text in (("a", "SPDX-License-Identifier: CC-BY-4.0\n"), ("b", "\n  MIT License\n\nCopyright"), ("c", "")):
        write_rows(tmp_path / name / "rows.jsonl", [{"prompt": f"{name}?", "completion": "Yes."}])
        if text:
            (tmp_path / name / "LICENCE.txt").write_text(text)
    sources = [str(tmp_path / name / "rows.jsonl") for name in "abc"]
    values: dict[str, Any] = {"output": str(tmp_path / "run"), "demonstrations": sources, "policy": str(tiny_model)}
    assert list(licences_of(PrepareConfig.model_validate(values)).values()) == ["CC-BY-4.0", "MIT License", ""]
    with pytest.raises(ValueError, match="is none of the sources: did you mean"):
        PrepareConfig.model_validate({**values, "licences": {sources[0] + "x": "MIT"}})
    prepare(PrepareConfig.model_validate({**values, "licences": {sources[2]: "bought"}}))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert set(manifest["licences"].values()) == {"CC-BY-4.0", "MIT License", "bought"}
    assert "distributions.json" not in str(manifest["outputs"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count(">bought<") == 1
    assert json.loads((tmp_path / "run" / "distributions.json").read_text())["words"]["after"][0] == 3
    assert len(read_rows(tmp_path / "run" / "final" / "demonstrations.jsonl")) == 3
