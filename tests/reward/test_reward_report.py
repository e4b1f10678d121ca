"""The report: figures worked by hand, votes traced through real run folders, garbage, and its page in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import write_rows

from reward.examples import EncodedPreference, encode, prompt_keys
from reward.garbage import Garbage, make_garbage
from reward.measures import ScoredGarbage, ScoredPair, build_figures, headline
from reward.page import build_page
from reward.provenance import Origin, Vote, trace_origin
from reward.report import TRAINED_PROMPTS, Exam, not_trained_on
from tiebreak.chat.build import build_chat
from tiebreak.config import StageConfig
from tiebreak.errors import HandoffError
from tiebreak.files import write_json
from tiebreak.measures.statistics import wilson_interval
from tiebreak.messages import Message, assistant, prompt_id
from tiebreak.records import Preference, Prompt
from tiebreak.runs.run import start_run

CHROMIUM = "/usr/bin/chromium"


def scored(
    number: int,
    chosen: tuple[float, ...],
    rejected: tuple[float, ...],
    lengths: tuple[int, int] = (4, 4),
    **fields: Any,
) -> ScoredPair:
    """A pair with a prompt of its own, whose answers have these numbers of tokens."""
    ask = (Message(role="user", content=fields.pop("ask", f"Question {number}?")),)
    source = Preference(
        prompt=ask,
        chosen=assistant(f"good {number}"),
        rejected=assistant(fields.pop("bad", f"bad {number}")),
        prompt_id=prompt_id(ask),
        pair_id=f"pair-{number}",
        **fields,
    )
    example = EncodedPreference([1], [2] * lengths[0], [3] * lengths[1], 0.0, source)
    return ScoredPair(example, chosen, rejected)


PAIRS = [
    scored(0, (2.0,), (1.0,), (8, 4), strength=1, agreement=1.0, raters=("ann", "bo"), kind="human", tags=("ph",)),
    scored(1, (1.0,), (0.0,), (4, 4), strength=3, agreement=1.0, raters=("ann",), kind="human", tags=("ph", "light")),
    scored(2, (0.0,), (3.0,), (4, 8), strength=1, agreement=0.6, raters=("bo",), kind="human"),
    scored(3, (1.0,), (1.0,), (9, 8), strength=2, agreement=0.8, raters=("bo",), kind="human"),
]
"""Right, right, wrong by 3, equal."""


def test_figures_by_hand() -> None:
    figures = build_figures(PAIRS, [], Origin())
    assert figures["accuracy"] == (1 + 1 + 0 + 0.5) / 4
    assert figures["accuracy_interval"] == pytest.approx(
        wilson_interval(2.5, 4), abs=0.05
    )  # ½ varies less than 0 and 1
    assert figures["length_baseline"] == (1 + 0.5 + 0 + 1) / 4
    assert figures["first_answer_baseline"] is None
    assert figures["score_mean"] == pytest.approx(9 / 8)
    by = {s["name"]: {r["value"]: (r["n"], r["accuracy"]) for r in s["rows"]} for s in figures["slices"]}
    assert by["Strength of the preference"] == {
        "slightly better": (2, 0.5),
        "better": (1, 0.5),
        "much better": (1, 1.0),
    }
    assert by["Agreement of the raters"] == {
        "all of them": (2, 1.0),
        "three quarters or more": (1, 0.5),
        "fewer": (1, 0.0),
    }
    assert by["Length of the answers"] == {
        "chosen much shorter (÷1.5)": (1, 0.0),
        "as long, within a tenth": (1, 1.0),
        "chosen longer (×1.1)": (1, 0.5),
        "chosen much longer (×1.5)": (1, 1.0),
    }
    assert by["Tag of the prompt"] == {"light": (1, 1.0), "none": (2, 0.25), "ph": (2, 1.0)}
    assert "Kind of rater" not in by  # all are people: nothing to tell apart
    assert [(r["rater"], r["of"], r["n"], r["accuracy"]) for r in figures["raters"]] == [
        ("ann", "preferences", 2, 1.0),
        ("bo", "preferences", 3, 0.5),
    ]
    assert [row["chosen"] for row in figures["worst"]] == ["good 2"]
    assert figures["spread"] is None


def test_a_raters_own_votes_count_and_not_the_majoritys() -> None:
    """bo voted against both preferences, one of which the model is right about."""
    votes = (
        Vote("ann", "pair-0", "good 0", "bad 0", True),
        Vote("bo", "pair-0", "bad 0", "good 0", False),
        Vote("bo", "pair-2", "bad 2", "good 2", True),
        Vote("cy", "pair-9", "good 9", "bad 9", True),  # of a pair that is not held out
    )
    figures = build_figures(PAIRS, [], Origin(votes=votes))
    assert [(r["rater"], r["of"], r["n"], r["accuracy"]) for r in figures["raters"]] == [
        ("ann", "votes", 1, 1.0),
        ("bo", "votes", 2, 0.5),
    ]
    assert figures["first_answer_baseline"]["accuracy"] == pytest.approx(2 / 3)


def test_spread_is_held_against_error() -> None:
    """Members differ most on the one pair that is wrong: every comparison with a right one is won."""
    pairs = [scored(n, (1.0, 1.0 + 0.1 * n), (0.0, 0.0)) for n in range(3)] + [scored(3, (0.0, 1.0), (4.0, 0.0))]
    spread = build_figures(pairs, [], Origin())["spread"]
    assert spread["members"] == 2
    assert spread["auroc"] == 1.0
    assert [part["accuracy"] for part in spread["parts"]] == [1.0, 1.0, 1.0, 0.0]
    assert spread["parts"][-1]["spread_to"] == pytest.approx(2.5)  # differences −4 and 1


def test_claims_say_what_the_figures_allow() -> None:
    lines = headline(build_figures(PAIRS, [], Origin()))
    assert lines["claim"] == "The reward model is right about 62% of 4 held-out preferences"
    assert any("not shown to be better than a coin" in caveat for caveat in lines["caveats"])
    liked = [ScoredGarbage(Garbage("copied", "Question?", [1], p.example), 9.0, p) for p in PAIRS]
    figures = build_figures([*PAIRS, scored(4, (1.0,), (0.0,), kind="simulated")], liked, Origin())
    assert figures["garbage"]["kinds"][0]["above_chosen"] == 1.0
    caveats = " ".join(headline(figures)["caveats"])
    assert "“copied”" in caveats
    assert "in 4 of 4 cases" in caveats
    assert "The raters are simulated" in caveats


def test_scores_that_are_no_numbers_stop_with_a_cause() -> None:
    exam = Exam([PAIRS[0].example], [], [])
    with pytest.raises(HandoffError, match=r"1 of 2 scores that are not finite numbers.*learning_rate.*checkpoints"):
        exam.mark([[float("nan")], [0.0]])


class AnyConfig(StageConfig):
    """A configuration, as far as a run folder needs one."""


def write_run(folder: Path, stage: str, inputs: dict[str, str], name: str, rows: list[Any]) -> str:
    run = start_run(AnyConfig(output=str(folder)), stage, inputs)
    write_rows(run.final / name, rows)
    run.finish()
    return str(folder)


def test_votes_and_tags_are_traced_through_the_runs_and_not_through_changed_ones(tmp_path: Path) -> None:
    ask = [Message(role="user", content="Why?")]
    prompt = Prompt(id=prompt_id(ask), messages=tuple(ask), source="forum", tags=("ph",), split="validation")
    prepared = write_run(tmp_path / "prepare", "prepare", {}, "prompts.jsonl", [prompt.model_dump(mode="json")])
    pair = {
        "id": "pair-1",
        "prompt_id": prompt.id,
        "messages": [m.model_dump() for m in ask],
        "completions": [{"id": "a", "text": "Yes.", "policy": "p"}, {"id": "b", "text": "No.", "policy": "p"}],
    }
    sampled = write_run(tmp_path / "sample", "sample", {"prompts": prepared}, "pairs.jsonl", [pair])
    judgment = {"pair_id": "pair-1", "rater_id": "ann", "left": "b", "right": "a", "kind": "human"}
    judgments = [{**judgment, "answer": 2}, {**judgment, "rater_id": "bo", "answer": 0}]
    labelled = write_run(tmp_path / "label", "label", {"pairs": sampled}, "judgments.jsonl", judgments)
    origin = trace_origin(labelled)
    assert origin.votes == (Vote("ann", "pair-1", "Yes.", "No.", False),)  # right was better; the tie is not a vote
    assert origin.prompts[prompt.id].tags == ("ph",)
    manifest = tmp_path / "sample" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"id": "', '"id": "x', 1))
    assert trace_origin(labelled) == Origin()
    assert trace_origin(str(tmp_path / "raw.jsonl")) == Origin()


def test_garbage_is_what_it_says(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    preferences = [
        Preference(
            prompt=(ask := (Message(role="user", content=f"Question {n}?"),)),
            chosen=assistant(f"Feed it {n} times with a weak solution, and look again."),
            rejected=assistant("It depends."),
            prompt_id=prompt_id(ask),
        )
        for n in range(4)
    ]
    examples = encode(preferences, build_chat(tokenizer), 256)
    garbage = make_garbage(examples, build_chat(tokenizer), 3, 256)
    assert len({g.of.group for g in garbage}) == 3
    by = {kind: [g for g in garbage if g.kind == kind] for kind in ("empty", "repeated", "copied", "over-long")}
    assert all(len(rows) == 3 for rows in by.values())
    for g in garbage:
        assert g.ids[: len(g.of.prompt)] == g.of.prompt
        assert g.ids[-1] == tokenizer.eos_token_id
        written = tokenizer.decode(g.ids[len(g.of.prompt) : -1]).strip()
        assert written == g.text
    assert {g.text for g in by["empty"]} == {""}
    assert all(g.text == g.of.source.prompt[-1].content for g in by["copied"])
    assert all(g.text.count("Feed it") >= 4 for g in by["repeated"])
    for g in by["over-long"]:
        tokens = len(g.ids) - len(g.of.prompt)
        assert g.text.startswith(g.of.source.chosen_text)
        assert len(g.of.chosen) < tokens <= 3 * len(g.of.chosen)
    assert all(len(g.ids) <= 40 for g in make_garbage(examples, build_chat(tokenizer), 3, 40))


@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no Chromium here")
def test_the_page_is_inert_and_fits(tmp_path: Path) -> None:
    """Text that wants to be HTML stays text, nothing is fetched, and a phone shows it without scrolling sideways."""
    playwright = pytest.importorskip("playwright.sync_api")
    hostile = "<img src=http://127.0.0.1:9/x onerror=alert(1)></script><script>alert(2)</script> " + "w" * 300
    pairs = [scored(5, (0.0,), (1.0,), ask=hostile, bad=hostile, raters=(hostile,)), *PAIRS]
    garbage = [ScoredGarbage(Garbage("repeated", hostile, [1], pairs[0].example), 2.0, pairs[0])]
    figures = build_figures(pairs, garbage, Origin())
    page_file = tmp_path / "report.html"
    page_file.write_text(build_page({"headline": headline(figures), **figures}, {"reward_model": hostile}))
    flags = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync".split()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-component-update"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(page_file.as_uri())
        assert asked == [page_file.as_uri()]
        assert errors == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("img").count() == 0
        sections = page.locator("section").evaluate_all("all => all.map(one => one.id)")
        assert sections == ["accuracy", "slices", "raters", "calibration", "garbage", "mistakes"]
        assert "5 of 5 prompts" in page.text_content("#accuracy")
        assert "Adversarial: repeated" in page.text_content("#garbage"), "the name of the section"
        assert page.locator("#mistakes article").count() == 2
        assert hostile[:40] in page.locator("#mistakes article .prompt").all_inner_texts()[1]
        browser.close()


def test_a_prompt_in_other_characters_was_trained_on_too(tmp_path: Path) -> None:
    asked = [(Message(role="user", content=text),) for text in ("caf\u00e9?", "cafe\u0301?", "cafe?")]
    preferences = [Preference(prompt=one, chosen=assistant("x"), rejected=assistant("y")) for one in asked]
    for trained in preferences[:2]:
        write_json(tmp_path / TRAINED_PROMPTS, sorted(prompt_keys(trained)))
        assert not_trained_on(preferences, tmp_path) == preferences[2:]
