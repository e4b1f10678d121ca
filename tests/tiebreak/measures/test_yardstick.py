"""Yardsticks by themselves: which values count, and how a function says its name and scale."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from tiebreak.errors import ConfigError, HandoffError
from tiebreak.measures.yardstick import Measurement, Yardstick, find_yardstick, parameters_of, shortened


def yardstick_of(folder: Path, source: str) -> Yardstick:
    (folder / "mine.py").write_text(f"{source}\n")
    return find_yardstick("mine:grade", folder)


SCALED = "def grade(prompt, answer): return float(answer)\ngrade.scale = (-1, 4)"


def test_a_value_on_an_end_of_the_scale_counts(tmp_path: Path) -> None:
    yardstick = yardstick_of(tmp_path, SCALED)
    assert [yardstick.measure("?", answer, "x") for answer in ("-1", "4", "0.5")] == [
        Measurement(-1.0, {}),
        Measurement(4.0, {}),
        Measurement(0.5, {}),
    ]
    for outside in ("-1.001", "4.5"):
        with pytest.raises(HandoffError) as error:
            yardstick.measure("?", outside, "the answer of 'base'")
        assert str(error.value) == (
            f"the yardstick mine:grade returned {outside}, outside its declared scale, -1 to 4, for the answer of "
            "'base'. No answer is lost: fix the function and run the same command again"
        )


def test_without_a_scale_any_finite_value_counts(tmp_path: Path) -> None:
    yardstick = yardstick_of(tmp_path, "def grade(prompt, answer): return eval(answer)")
    assert yardstick.scale is None
    assert yardstick.measure("?", "-1e9", "x").value == -1e9
    assert yardstick.measure("?", "True", "x").value == 1.0
    for returned, shown in (
        ("None", "None"),
        ("float('-inf')", "-inf"),
        ("'1'", "'1' (str)"),
        ("b'1'", "b'1' (bytes)"),
    ):
        with pytest.raises(HandoffError) as error:
            yardstick.measure("?", returned, "x")
        assert f"returned {shown}, which is not a finite number, for x." in str(error.value)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("'Clarity'", "Clarity"), ("'  '", "mine:grade"), ("7", "mine:grade"), ("None", "mine:grade")],
)
def test_a_name_is_a_text_that_shows(name: str, shown: str, tmp_path: Path) -> None:
    assert yardstick_of(tmp_path, f"{SCALED}\ngrade.name = {name}").name == shown


@pytest.mark.parametrize("scale", ["(1, 1)", "(2, 1)", "(0, float('inf'))", "(float('-inf'), 0)", "(float('nan'), 1)"])
def test_a_scale_has_two_ends_in_their_order(scale: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^yardstick: mine:grade\.scale is \(.*\): the first must be less$"):
        yardstick_of(tmp_path, f"{SCALED}\ngrade.scale = {scale}")
    with pytest.raises(ConfigError, match=r"grade\.scale must be two numbers, \(low, high\)"):
        yardstick_of(tmp_path, f"{SCALED}\ngrade.scale = (1, 2, 3)")


def test_a_function_takes_a_prompt_and_an_answer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be called as grade\(prompt, answer\)"):
        yardstick_of(tmp_path, "def grade(prompt): return 1")


def test_the_shipped_rubric_and_its_criteria() -> None:
    rubric = find_yardstick("rubric")
    assert (rubric.source, rubric.name, rubric.scale, rubric.file) == ("rubric", "Rubric score", (0.0, 1.0), None)
    measured = rubric.measure("Why?", "Add 2 ml of feed.", "x")
    met = {"concrete": 1, "actionable": 1, "direct": 1, "unrepeated": 1, "length": 0, "finished": 1}
    assert (measured.value, measured.criteria) == (pytest.approx(5 / 6), met)


def test_criteria_of_a_function_are_asked_of_the_same_answer(tmp_path: Path) -> None:
    source = f"{SCALED}\ngrade.criteria = lambda prompt, answer: {{prompt: answer == '2', 'given': answer}}"
    yardstick = yardstick_of(tmp_path, source)
    assert yardstick.file == str(tmp_path / "mine.py")
    assert yardstick.measure("two", "2", "x") == Measurement(2.0, {"two": True, "given": True})
    assert yardstick.measure("two", "3", "x") == Measurement(3.0, {"two": False, "given": True})


def test_criteria_are_none_where_they_cannot_be_found_out(tmp_path: Path) -> None:
    assert yardstick_of(tmp_path, SCALED).criteria_of("two", "2") == {}
    source = f"{SCALED}\ngrade.criteria = lambda prompt, answer: {{prompt: 1 / int(answer), 4: answer}}"
    yardstick = yardstick_of(tmp_path, source)
    assert yardstick.criteria_of("two", "2") == {"two": True, "4": True}
    assert yardstick.criteria_of("two", "0") == {}


def test_parameters_by_name() -> None:
    assert parameters_of(shortened) == {*inspect.signature(shortened).parameters}
    assert parameters_of(int.from_bytes) >= {"bytes"}
    assert parameters_of(iter) == set()  # a built-in function without a signature


def test_a_question_is_shortened_to_sixty_characters_on_one_line() -> None:
    assert shortened("a\n b\t c ") == "a b c"
    assert shortened("x" * 60) == "x" * 60
    assert shortened("x" * 61) == "x" * 60 + "…"
    assert shortened("ab " * 50) == "ab " * 20 + "…"
