"""The rubric, on answers judged by hand: for each criterion some that meet it and some that do not."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tiebreak.measures.yardstick import find_yardstick
from tiebreak.measures.yardsticks.wording import repeated_share
from tiebreak.shipped import packaged

sys.path.append(str(packaged("data/hydroponics/rubric.py").parent))

from rubric import IMPERATIVES, score_rubric

JUDGED: dict[str, tuple[list[str], list[str]]] = {
    "concrete": (
        [
            "Keep it at 18 °C.",
            "Add 2.5 ml per litre.",
            "Give 2-3 litres a day.",
            "Use 20% less feed.",
            "Hold the pH near 5.8.",
            "Run the EC at 1.6.",
            "Wait 10 to 15 minutes.",
            "Set a 30-minute timer.",
            "Light for 16h.",
        ],
        [
            "Keep it cool.",
            "Add some feed.",
            "There are 3 reasons.",
            "Ask in room 12.",
            "The pH matters.",
            "Buy model X200.",
        ],
    ),
    "actionable": (
        [
            "Lower the light.",
            "First, rinse the roots.",
            "- Check the pump.",
            "2. Replace the tubing.",
            "The pump is blocked. Clean it.",
            "Every week, flush the tank.",
            "To stop algae, cover the reservoir.",
        ],
        [
            "The light is too strong.",
            "You might want to look into it.",
            "Lowering the light helps.",
            "It is the pump.",
            "",
        ],
    ),
    "direct": (
        ["Lower the light.", "Brown roots mean rot.", "Surely it is rot.", "Hit the pump once."],
        [
            "Great question! Lower it.",
            "I'm sorry to hear that.",
            "Sure, lower it.",
            "  THANK YOU for asking.",
            "Hi there.",
            "",
        ],
    ),
    "unrepeated": (
        [
            "one two three four five six",
            "one two three one two three",  # runs of four: 123 1, 23 12, 3 123: all different
            "Lower the light and then lower the pump.",
        ],
        [
            "one two three four and one two three four",
            "Lower the light now. Lower the light now.",
            "no no no no no",
            "",
        ],
    ),
    "length": (
        [" ".join(["word"] * 20), " ".join(["word"] * 70)],
        [" ".join(["word"] * 19), " ".join(["word"] * 71), ""],
    ),
    "finished": (
        ["Done.", "Done!", "Done?", 'He said "done."', "Done.  \n", "(Done.)"],
        ["Done", "Add 2 ml and", "Done:", "Done,", ""],
    ),
}


@pytest.mark.parametrize(
    ("criterion", "answer", "met"),
    [
        (name, answer, met)
        for name, sides in JUDGED.items()
        for met, side in zip((True, False), sides, strict=True)
        for answer in side
    ],
)
def test_each_criterion_as_judged_by_hand(criterion: str, answer: str, met: bool) -> None:
    assert getattr(score_rubric(answer), criterion) is met


def test_every_criterion_is_judged_both_ways() -> None:
    assert set(JUDGED) == set(asdict(score_rubric("")))


def test_the_score_is_the_share_of_criteria_met() -> None:
    whole = (
        "Lower the pH to 5.8 with 1 ml of acid per litre, wait 30 minutes, then measure it again and repeat until it "
        "stays between 5.5 and 6.2."
    )
    assert score_rubric(whole).score == 1.0
    assert score_rubric(whole.removesuffix(".")).score == pytest.approx(5 / 6)
    assert score_rubric("").score == 0.0
    # direct, unrepeated, finished; no number, nothing to do, four words
    assert score_rubric("It depends on much.").score == pytest.approx(0.5)


def test_the_repeated_share_by_hand() -> None:
    # runs of four in nine words: six, of which "a b c d" comes again once
    assert repeated_share("a b c d x a b c d") == pytest.approx(1 / 6)
    # five runs, all "no no no no": four have come before
    assert repeated_share("no " * 8) == pytest.approx(4 / 5)
    assert repeated_share("a b c") == 0.0


def test_imperatives_are_words_as_the_rule_reads_them() -> None:
    assert all(word.isascii() and word.isalpha() and word == word.lower() for word in IMPERATIVES)


def test_a_yardstick_of_ones_own_may_name_its_criteria(tmp_path: Path) -> None:
    (tmp_path / "wishes.py").write_text(
        "def score(prompt, answer):\n    return 0.5\n"
        "score.criteria = lambda prompt, answer: {'asks': answer.endswith('?'), 'names it': prompt in answer}\n"
    )
    measured = find_yardstick("wishes:score", tmp_path).measure("basil", "Is the basil wet?", "an answer")
    assert (measured.value, measured.criteria) == (0.5, {"asks": True, "names it": True})


def test_the_rubric_is_the_one_that_comes_with_tiebreak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/hydroponics").mkdir(parents=True)
    (tmp_path / "data/hydroponics/rubric.py").write_text("def score(prompt, answer):\n    return 0.0\n")
    monkeypatch.chdir(tmp_path)
    rubric = find_yardstick("rubric")
    assert (rubric.name, rubric.scale, rubric.file) == ("Rubric score", (0.0, 1.0), None)
    assert rubric.measure("", "Add 5 ml.", "an answer").value == score_rubric("Add 5 ml.").score > 0
