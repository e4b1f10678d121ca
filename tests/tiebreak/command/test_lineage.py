"""`tiebreak lineage`: the way from a judgment to the models that learned from it, over runs written without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from study import finished, write_seed
from support import run_here

from tiebreak.command.lineage import chain_lines, lineage_page, main
from tiebreak.errors import RunError
from tiebreak.runs.lineage import Family, Trace, trace_judgment, trace_rater


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes, and a model of a second round: its labels judge what seed 0's policy answered."""
    root = tmp_path_factory.mktemp("lineage")
    for seed in (0, 1):
        write_seed(root / f"seed-{seed}", seed, prompts=4, steps=4)
    first = root / "seed-0"
    sample = finished(root / "second" / "sample", "sample", {"policy": str(first / "dpo-high")})
    judged = [{"pair_id": "pair-2nd", "rater_id": "rater-9", "kind": "human"}]
    held = [{"pair_id": "pair-2nd", "raters": ["rater-9"], "split": "validation"}]
    files = {"judgments.jsonl": judged, "preferences.jsonl": held}
    label = finished(root / "second" / "label", "label", {"pairs": sample}, files)
    finished(root / "second" / "dpo", "dpo", {"policy": str(first / "sft"), "preferences": label})
    return root


def models(traces: list[Trace], root: Path) -> list[str]:
    return sorted(str(Path(one.run.folder).relative_to(root)) for trace in traces for one in trace.models)


def test_a_judgment_reaches_the_models_of_its_own_recipe(runs: Path) -> None:
    (trace,) = trace_judgment(Family.around(str(runs)), "pair-1-4")
    assert models([trace], runs) == ["seed-1/dpo-high", "seed-1/dpo-low", "seed-1/ppo", "seed-1/reward"]
    ppo = next(one for one in trace.models if one.run.stage == "ppo")
    assert ppo.way == ("preferences of reward", "reward_model of ppo")
    assert (trace.judgments, trace.split) == (1, "train")


def test_a_judgment_without_a_preference_taught_nothing_and_a_held_out_one_measured(runs: Path) -> None:
    family = Family.around(str(runs))
    (outvoted,) = trace_judgment(family, "pair-1-5")
    assert outvoted.split == ""
    (other,) = trace_judgment(family, "pair-1-4:rater-1")
    assert other.split == "train"
    with pytest.raises(RunError, match="no labelling run here has a judgment pair-1-4:rater-2"):
        trace_judgment(family, "pair-1-4:rater-2")
    (held_out,) = trace_judgment(family, "pair-2nd")
    assert held_out.split == "validation"


def test_forgetting_a_rater_reaches_later_rounds(runs: Path) -> None:
    """Rater 0 judged in both recipes; the second round judged answers of a policy that had learned from them."""
    found = models(trace_rater(Family.around(str(runs)), "rater-0"), runs)
    both = [f"seed-{s}/{name}" for s in (0, 1) for name in ("dpo-high", "dpo-low", "ppo", "reward")]
    assert found == ["second/dpo", *both]
    assert models(trace_rater(Family.around(str(runs)), "rater-9"), runs) == ["second/dpo"]
    with pytest.raises(
        RunError, match="no labelling run here has judgments of 'x': there are rater-0, rater-1, rater-2"
    ):
        trace_rater(Family.around(str(runs)), "x")


def test_the_chain_names_raters_guidelines_and_commits_after_a_move(runs: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    (runs / "seed-1").rename(moved)
    try:
        family = Family.around(str(moved / "ppo"))
        run = next(one for one in family.runs.values() if one.folder == str(moved / "ppo"))
        chain = family.made_from(run)
        stages = [one.stage for one in chain]
        assert stages == ["prepare", "sft", "sample", "label", "reward", "ppo"]
        lines = chain_lines(family, chain)
        assert "  judged by rater-0 (simulated): 4 judgments, guidelines g1" in lines
        assert any(line.startswith("ppo  ") and "commit" in line for line in lines)
        assert not any("not found" in line for line in lines)
    finally:
        moved.rename(runs / "seed-1")


def test_an_unfinished_run_has_learned_already(tmp_path: Path) -> None:
    write_seed(tmp_path / "a", 0, prompts=2, steps=2)
    (tmp_path / "a" / "dpo-low" / "manifest.json").unlink()
    (trace,) = trace_rater(Family.around(str(tmp_path)), "rater-0")
    assert "a/dpo-low" in models([trace], tmp_path)


def test_the_command(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main([str(runs / "seed-0" / "ppo"), "--html"])
    assert "page: file://" in capsys.readouterr().out
    page = (tmp_path / "lineage.html").read_text()
    assert page.count('class="node-name"') == 6
    assert "rater-2" in page
    main([str(runs), "--forget", "rater-9"])
    assert "train 1 model anew" in capsys.readouterr().out
    main([str(runs), "--judgment", "pair-1-5"])
    assert "no preference came of it" in capsys.readouterr().out
    main([str(runs), "--judgment", "pair-2nd"])
    assert "1 model held it out (validation)" in capsys.readouterr().out
    main([str(runs), "--forget", "rater-9", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["models"][0]["stage"] == "dpo"
    for words, expected in (
        ([runs], "is not a run folder, but holds some"),
        ([tmp_path / "no"], "no such run folder"),
        ([tmp_path], "no runs in"),
        ([], "lineage takes one folder"),
        ([runs, "--judgment", "a", "--forget", "b"], "ask one at a time"),
    ):
        status, message = run_here("lineage", *words)
        assert status != 0
        assert expected in message


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    judged = [{"pair_id": "p", "rater_id": "<script>alert(1)</script>", "kind": "human"}]
    finished(tmp_path / "label", "label", {}, {"judgments.jsonl": judged})
    page = lineage_page("x", list(Family.around(str(tmp_path)).runs.values()))
    assert "<script>alert" not in page
