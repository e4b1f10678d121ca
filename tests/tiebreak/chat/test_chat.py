"""Conversations as ids and loss masks, worked by hand on ChatML, and what is refused before it trains."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tiebreak.chat.build import build_chat, check_tokenizer
from tiebreak.chat.chat import EncodedSequence
from tiebreak.chat.rows import check_encoded, coloured_mask
from tiebreak.errors import HandoffError
from tiebreak.messages import Message, Messages

SYSTEM = Message(role="system", content="Be brief.")
ASK = Message(role="user", content="Why pale?")
ANSWER = Message(role="assistant", content="Add iron.")
AGAIN = Message(role="user", content="How much?")
MORE = Message(role="assistant", content="Add 2 ml.")
CONVERSATION: Messages = (SYSTEM, ASK, ANSWER, AGAIN, MORE)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def one(examples: list[EncodedSequence]) -> EncodedSequence:
    (example,) = examples
    return example


def parts(tokenizer: Any, encoded: EncodedSequence) -> list[tuple[int, str]]:
    """(mask, text) of each run of equal mask."""
    found: list[tuple[int, list[int]]] = []
    for token, mask in zip(encoded.input_ids, encoded.loss_mask, strict=True):
        if not found or found[-1][0] != mask:
            found.append((mask, []))
        found[-1][1].append(token)
    return [(mask, tokenizer.decode(ids)) for mask, ids in found]


def test_the_mask_on_a_chatml_conversation_by_hand(tokenizer: Any) -> None:
    assert parts(tokenizer, one(build_chat(tokenizer).encode_conversation((SYSTEM, ASK, ANSWER)))) == [
        (0, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy pale?<|im_end|>\n<|im_start|>assistant\n"),
        (1, "Add iron.<|im_end|>"),
    ]


def test_several_turns_are_trained_on_all_or_the_last(tokenizer: Any) -> None:
    first = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy pale?<|im_end|>\n<|im_start|>assistant\n"
    second = "\n<|im_start|>user\nHow much?<|im_end|>\n<|im_start|>assistant\n"
    whole = one(build_chat(tokenizer).encode_conversation(CONVERSATION))
    assert parts(tokenizer, whole) == [(0, first), (1, "Add iron.<|im_end|>"), (0, second), (1, "Add 2 ml.<|im_end|>")]
    last = one(build_chat(tokenizer).encode_conversation(CONVERSATION, last_only=True))
    assert last.input_ids == whole.input_ids
    assert parts(tokenizer, last) == [(0, f"{first}Add iron.<|im_end|>{second}"), (1, "Add 2 ml.<|im_end|>")]


def test_a_conversation_must_end_with_an_answer(tokenizer: Any) -> None:
    for messages in ((), (ASK,), (ASK, ANSWER, AGAIN)):
        with pytest.raises(ValueError, match="ends with the assistant"):
            build_chat(tokenizer).encode_conversation(messages)


def test_prompt_and_completion_are_the_templates_own_ids(tokenizer: Any) -> None:
    prompt, completion = build_chat(tokenizer).encode_completion([ASK], ANSWER.content)
    rendered = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in (ASK, ANSWER)], tokenize=True, return_dict=False
    )
    newline = tokenizer("\n")["input_ids"]
    assert prompt + completion + newline == rendered
    assert prompt == build_chat(tokenizer).encode_prompt([ASK])


def test_an_unfinished_answer_has_no_end(tokenizer: Any) -> None:
    finished = build_chat(tokenizer).encode_completion([ASK], "Add iron")
    cut_off = build_chat(tokenizer).encode_completion([ASK], "Add iron", finished=False)
    assert finished[0] == cut_off[0]
    assert finished[1] == [*cut_off[1], tokenizer.eos_token_id]
    assert tokenizer.eos_token_id not in cut_off[1]


@pytest.mark.parametrize("blank", ["", " ", "   ", "\n", "\n\n", "\n \n", "\t", "\r\n"])
def test_blanks_at_an_answers_start_leave_the_prompt_as_it_is_sampled_from(tokenizer: Any, blank: str) -> None:
    prompt, completion = build_chat(tokenizer).encode_completion([ASK], f"{blank}Add iron.")
    assert prompt == build_chat(tokenizer).encode_prompt([ASK])
    assert tokenizer.decode(completion) == f"{blank}Add iron.<|im_end|>"


def test_decoding_is_the_way_back(tokenizer: Any) -> None:
    for text in ("Add iron.", "18 °C\n\n- dim\n- wait", "naïve 日本 🌱"):
        assert build_chat(tokenizer).decode_completion(build_chat(tokenizer).encode_completion([ASK], text)[1]) == text


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Add iron.<|im_end|>", "<|im_end|>", "Add<|im_end|> iron."])
def test_an_answer_that_brings_an_end_of_its_own_is_refused(tokenizer: Any, text: str) -> None:
    with pytest.raises(HandoffError, match="two end-of-sequence tokens") as caught:
        build_chat(tokenizer).encode_completion([ASK], text)
    assert repr(text) in str(caught.value)
    with pytest.raises(HandoffError, match="two end-of-sequence tokens"):
        build_chat(tokenizer).encode_conversation((ASK, Message(role="assistant", content=text), AGAIN, MORE))


def test_two_ends_in_a_row_are_refused_wherever_they_stand(tokenizer: Any) -> None:
    eos = tokenizer.eos_token_id
    check_encoded(EncodedSequence([5, eos, 6, eos], [0, 0, 1, 1]), build_chat(tokenizer), "row 1")
    with pytest.raises(HandoffError, match="row 2: two end-of-sequence tokens"):
        check_encoded(EncodedSequence([5, eos, eos, 6], [0, 0, 0, 1]), build_chat(tokenizer), "row 2")


def test_an_example_with_nothing_to_learn_is_refused(tokenizer: Any) -> None:
    with pytest.raises(HandoffError, match="row 3: no token is trained on"):
        check_encoded(EncodedSequence([5, 6], [0, 0]), build_chat(tokenizer), "row 3")


def with_template(tokenizer: Any, template: str | None) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_a_template_whose_prompt_is_no_prefix_is_refused(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>helper\n{% endif %}"
    )
    other = with_template(tokenizer, template)
    assert build_chat(other).encode_prompt([ASK])
    with pytest.raises(HandoffError, match="renders a prompt differently"):
        build_chat(other).encode_completion([ASK], "Add iron.")


def test_a_template_that_closes_a_turn_with_no_token_gets_its_end(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    _, completion = build_chat(with_template(tokenizer, template)).encode_completion([ASK], "Add iron.")
    assert completion[-1] == tokenizer.eos_token_id
    assert completion.count(tokenizer.eos_token_id) == 1


def test_a_template_that_begins_twice_is_refused(tokenizer: Any) -> None:
    template = "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(HandoffError, match="two beginning-of-sequence tokens"):
        build_chat(with_template(tokenizer, template)).encode_prompt([ASK])


def test_tokenizers_that_would_train_on_the_wrong_thing_are_refused(tokenizer: Any) -> None:
    check_tokenizer(tokenizer, "good")
    with pytest.raises(HandoffError, match="bad: the tokenizer has no chat template"):
        check_tokenizer(with_template(tokenizer, None), "bad")
    other = copy.deepcopy(tokenizer)
    other.pad_token = other.eos_token
    with pytest.raises(HandoffError, match=r"bad: padding and end-of-sequence are one token.*set another pad_token"):
        check_tokenizer(other, "bad")
    other = copy.deepcopy(tokenizer)
    other.pad_token = None
    with pytest.raises(HandoffError, match="bad: padding and end-of-sequence are one token"):
        check_tokenizer(other, "bad")
    with pytest.raises(HandoffError, match="the model: padding and end-of-sequence"):
        build_chat(other)
    other = copy.deepcopy(tokenizer)
    other.eos_token = None
    with pytest.raises(HandoffError, match="bad: the tokenizer has no end-of-sequence token"):
        check_tokenizer(other, "bad")


def test_the_mask_is_shown_in_brackets_where_there_is_no_terminal(tokenizer: Any) -> None:
    shown = coloured_mask(tokenizer, one(build_chat(tokenizer).encode_conversation((SYSTEM, ASK, ANSWER))))
    assert shown.endswith("<|im_start|>assistant\n⟦Add iron.<|im_end|>⟧")
    assert shown.count("⟦") == shown.count("⟧") == 1
