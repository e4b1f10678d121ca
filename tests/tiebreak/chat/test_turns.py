"""What ends a turn, what is a thought, and what a template leaves out: on templates of real families, worked by hand."""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tiebreak.chat.build import build_chat, written_end
from tiebreak.chat.chat import Chat, EncodedSequence
from tiebreak.chat.rows import coloured_mask, encode_each
from tiebreak.chat.templates import as_template_message, in_parts, parts_of, render_messages
from tiebreak.chat.turns import (
    Turn,
    end_of_turn,
    find_template,
    marks_of,
    model_end_tokens,
    named_end_tokens,
    probe_turn,
    special_ids,
    with_fixed_date,
)
from tiebreak.config import ChatSettings, StageConfig
from tiebreak.errors import ConfigError, DataError, HandoffError, NoRowLeftError
from tiebreak.messages import Message, Messages, prompt_id
from tiebreak.records import LabelledAnswer, Preference, Prompt
from tiebreak.runs.run import start_run

ASK = Message(role="user", content="Why pale?")
AGAIN = Message(role="user", content="How much?")
ANSWER = Message(role="assistant", content="Add iron.")
MORE = Message(role="assistant", content="Add 2 ml.")
THOUGHT = Message(role="assistant", content="Add iron.", reasoning_content="Pale is hungry.")
CALL = Message.model_validate(
    {"role": "assistant", "tool_calls": [{"name": "look", "arguments": {"leaf": "top"}}], "content": None}
)
RESULT = Message(role="tool", content="It is yellow.")
TOOLS = ({"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}},)

GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>")


@pytest.fixture(scope="module")
def words(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@functools.cache
def with_tokens(words: Any, special: tuple[str, ...], eos: str) -> Any:
    tokenizer = copy.deepcopy(words)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = special[0], eos, "<file_sep>"
    return tokenizer


def family(
    words: Any, template: str, special: tuple[str, ...], eos: str, ends: tuple[str, ...] = (), **settings: Any
) -> Chat:
    """A tokenizer with a family's special tokens and template. `ends`: of the model's generation_config.json."""
    tokenizer = with_tokens(words, special, eos)
    tokenizer.chat_template = find_template(template, tokenizer)
    ids = [tokenizer.convert_tokens_to_ids(end) for end in ends]
    return build_chat(tokenizer, ChatSettings(**settings), ids, tokenizer_sha256="of-this-tokenizer")


def trained(chat: Chat, examples: list[EncodedSequence]) -> list[list[str]]:
    """The text of each run of trained tokens, of each example."""
    found: list[list[str]] = []
    for example in examples:
        runs: list[list[int]] = []
        for place, (token, mask) in enumerate(zip(example.input_ids, example.loss_mask, strict=True)):
            if mask and (place == 0 or not example.loss_mask[place - 1]):
                runs.append([])
            if mask:
                runs[-1].append(token)
        found.append([chat.tokenizer.decode(run) for run in runs])
        assert set(example.loss_mask) <= {0, 1}
    return found


def stops(chat: Chat) -> set[str]:
    return {chat.tokenizer.decode([token]) for token in chat.stop_ids}


# --- what ends a turn


def test_an_answer_ends_with_the_templates_token_and_sampling_stops_at_all_of_the_models(words: Any) -> None:
    gemma = family(words, "gemma3", GEMMA, "<eos>", ("<eos>", "<end_of_turn>"))
    assert stops(gemma) == {"<eos>", "<end_of_turn>"}
    assert trained(gemma, gemma.encode_conversation((ASK, ANSWER))) == [["Add iron.<end_of_turn>"]]


def test_a_base_models_own_end_is_not_the_turns(words: Any) -> None:
    """Qwen2.5's base model names <|endoftext|> alone, and its template ends turns with <|im_end|>."""
    qwen = family(words, "qwen2_5", CHATML, "<|endoftext|>", ("<|endoftext|>",))
    assert stops(qwen) == {"<|endoftext|>", "<|im_end|>"}
    assert trained(qwen, qwen.encode_conversation((ASK, ANSWER))) == [["Add iron.<|im_end|>"]]


@pytest.mark.parametrize("ends", [(), ("<|endoftext|>", "<|end|>")])
def test_what_closes_the_whole_conversation_is_not_learned(words: Any, ends: tuple[str, ...]) -> None:
    """Phi-3 writes <|end|>\\n<|endoftext|> after the last answer."""
    phi = family(words, "phi3", ("<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|endoftext|>"), "<|endoftext|>", ends)
    assert trained(phi, phi.encode_conversation((ASK, ANSWER, AGAIN, MORE))) == [
        ["Add iron.<|end|>", "Add 2 ml.<|end|>"]
    ]
    assert phi.end_id == phi.tokenizer.convert_tokens_to_ids("<|end|>")


def test_a_mark_before_the_models_end_is_part_of_the_answer(words: Any) -> None:
    """Cohere writes <|END_RESPONSE|><|END_OF_TURN_TOKEN|>, and stops at the second."""
    special = ("<BOS_TOKEN>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>")
    cohere = family(words, "cohere2", special, "<|END_OF_TURN_TOKEN|>")
    [[text]] = trained(cohere, cohere.encode_conversation((ASK, ANSWER)))
    assert text.endswith("Add iron.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>")
    assert stops(cohere) == {"<|END_OF_TURN_TOKEN|>"}


def test_end_of_turn_names_the_tokens_and_must_hold_the_templates_own(words: Any) -> None:
    named = family(words, "gemma3", GEMMA, "<eos>", end_of_turn=["<end_of_turn>"])
    assert stops(named) == {"<end_of_turn>"}
    with pytest.raises(HandoffError, match=r"ends an answer with '<end_of_turn>'.*add it to end_of_turn"):
        family(words, "gemma3", GEMMA, "<eos>", end_of_turn=["<eos>"])
    with pytest.raises(ConfigError, match="end_of_turn: 'two words' is not one token"):
        family(words, "gemma3", GEMMA, "<eos>", end_of_turn=["two words"])


def test_a_template_without_an_end_takes_the_first_that_is_named(words: Any) -> None:
    plain = copy.copy(words)
    plain.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    chat = build_chat(plain, ChatSettings(end_of_turn=["<|im_end|>", "<|endoftext|>"]))
    assert (chat.end_id, stops(chat)) == (plain.convert_tokens_to_ids("<|im_end|>"), {"<|im_end|>", "<|endoftext|>"})
    other = build_chat(plain, ChatSettings(end_of_turn=["<|endoftext|>", "<|im_end|>"]))
    assert (other.end_id, other.stop_ids) == (plain.convert_tokens_to_ids("<|endoftext|>"), chat.stop_ids)
    assert build_chat(plain).end_id == plain.eos_token_id
    assert written_end(plain) is None


def test_the_end_that_a_tokenizers_template_writes(words: Any) -> None:
    assert written_end(words) == words.convert_tokens_to_ids("<|im_end|>")
    for template in (None, "{{ messages[0].role }}"):
        other = copy.copy(words)
        other.chat_template = template
        assert written_end(other) is None
        with pytest.raises(
            HandoffError, match="no chat template" if template is None else "leaves an assistant's answer out"
        ):
            build_chat(other, name="other")


def test_whether_ids_end_and_what_a_text_says_without_marks(words: Any) -> None:
    chat = family(words, "qwen3", CHATML, "<|im_end|>", ("<|endoftext|>",))
    end, more = (
        chat.tokenizer.convert_tokens_to_ids("<|im_end|>"),
        chat.tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    assert [chat.ends(ids) for ids in ([], [end], [5, more], [end, 5], [more, end, 5, 6])] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert chat.pad_id == chat.tokenizer.convert_tokens_to_ids("<file_sep>")
    marked = "<|im_start|><think>Hm</think> a<|im_end|><|endoftext|> b "
    assert chat.without_marks(marked) == "Hm a b "
    assert build_chat(words).without_marks("<think>a</think>") == "<think>a</think>"


def test_an_end_at_which_sampling_would_not_stop_is_refused(words: Any) -> None:
    """gpt-oss ends a call with <|call|>, which its generation_config.json names and its tokenizer does not."""
    bare = family(words, "gptoss", HARMONY, "<|return|>")
    with pytest.raises(HandoffError, match=r"'<\|call\|>', at which sampling would not stop.*end_of_turn"):
        bare.encode_completion([ASK], CALL, tools=TOOLS)
    whole = family(words, "gptoss", HARMONY, "<|return|>", ("<|return|>", "<|call|>"))
    _, completion = whole.encode_completion([ASK], CALL, tools=TOOLS)
    assert whole.tokenizer.decode(completion[-1:]) == "<|call|>"


def test_a_models_own_end_tokens(tmp_path: Path) -> None:
    assert model_end_tokens(tmp_path) == ()
    (tmp_path / "config.json").write_text('{"text_config": {"eos_token_id": [4, 5]}}')
    assert model_end_tokens(tmp_path) == (4, 5)
    (tmp_path / "config.json").write_text('{"eos_token_id": null, "text_config": {"eos_token_id": [4, 5]}}')
    assert model_end_tokens(tmp_path) == (4, 5)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null}')
    assert model_end_tokens(tmp_path) == (4, 5)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert model_end_tokens(tmp_path) == (7,)


def test_an_end_inside_an_answer_is_refused_whichever_of_the_stops_it_is(words: Any) -> None:
    gemma = family(words, "gemma3", GEMMA, "<eos>", ("<eos>", "<end_of_turn>"))
    for end in ("<eos>", "<end_of_turn>"):
        with pytest.raises(HandoffError, match=f"two end-of-sequence tokens \\('{end}'\\)"):
            gemma.encode_completion([ASK], f"Add{end} iron.")


def test_a_plain_token_may_end_a_turn_and_nothing_may_follow_it(words: Any) -> None:
    """Of the text after an answer's end, blanks and special tokens are the template's; a word is not."""
    tokenizer = copy.deepcopy(words)
    tokenizer.add_tokens(["STOP"])
    turn = "{% for m in messages %}{{ m.role }}: {{ m.content }}STOP\n{% endfor %}"
    tokenizer.chat_template = turn + "{% if add_generation_prompt %}assistant: {% endif %}"
    chat = build_chat(tokenizer, ChatSettings(end_of_turn=["STOP"]))
    _, completion = chat.encode_completion([ASK], ANSWER)
    assert tokenizer.decode(completion) == "Add iron.STOP"
    for following in ("!", " more words STOP"):
        tokenizer.chat_template = turn.replace("STOP", f"STOP{following}") + (
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
        with pytest.raises(HandoffError, match=r"two end-of-sequence tokens \('STOP'\)"):
            build_chat(tokenizer, ChatSettings(end_of_turn=["STOP"])).encode_completion([ASK], ANSWER)


def test_a_token_that_the_model_has_no_weights_for_is_refused(words: Any) -> None:
    largest = max(map(max, build_chat(words).encode_completion([ASK], ANSWER)))
    build_chat(words, vocabulary=largest + 1).encode_completion([ASK], ANSWER)
    with pytest.raises(HandoffError, match=f"number {largest}\\) that the model has no weights for.* is of {largest}:"):
        build_chat(words, vocabulary=largest).encode_completion([ASK], ANSWER)


# --- thoughts


def test_every_turn_is_learned_as_the_policy_writes_it(words: Any) -> None:
    """Qwen3 leaves the thought's marks out of earlier turns: each turn is an example, in the context it is written in."""
    qwen = family(words, "qwen3", CHATML, "<|im_end|>")
    examples = qwen.encode_conversation((ASK, ANSWER, AGAIN, MORE))
    empty = "<think>\n\n</think>\n\n"
    assert trained(qwen, examples) == [[f"{empty}Add 2 ml.<|im_end|>"], [f"{empty}Add iron.<|im_end|>"]]
    for example, before in zip(examples, ((ASK, ANSWER, AGAIN), (ASK,)), strict=True):
        prompt = example.input_ids[: example.loss_mask.index(1)]
        assert prompt == qwen.encode_prompt(before)
    only = qwen.encode_conversation((ASK, ANSWER, AGAIN, MORE), last_only=True)
    assert trained(qwen, only) == [[f"{empty}Add 2 ml.<|im_end|>"]]


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        ("keep", ["<think>\nPale is hungry.\n</think>\n\nAdd iron.<|im_end|>"]),
        ("drop", ["<think>\n\n</think>\n\nAdd iron.<|im_end|>"]),
        ("mask", ["\n\nAdd iron.<|im_end|>"]),
    ],
)
@pytest.mark.parametrize(
    "answer",
    [THOUGHT, Message(role="assistant", content="<think>\nPale is hungry.\n</think>\n\nAdd iron.")],
    ids=["reasoning_content", "in the text"],
)
def test_a_thought_is_kept_dropped_or_masked(words: Any, thinking: str, expected: list[str], answer: Message) -> None:
    qwen = family(words, "qwen3", CHATML, "<|im_end|>", thinking=thinking)
    assert trained(qwen, qwen.encode_conversation((ASK, answer))) == [expected]


def test_a_thought_that_is_not_closed_is_no_answer(words: Any) -> None:
    qwen = family(words, "qwen3", CHATML, "<|im_end|>")
    with pytest.raises(HandoffError, match="a thought that is not closed"):
        qwen.encode_completion([ASK], "<think>\nfirst I look")
    _, cut_off = qwen.encode_completion([ASK], "<think>\nfirst I look", finished=False)
    assert qwen.tokenizer.decode(cut_off) == "<think>\nfirst I look"
    open_thought = Message(role="assistant", content="<think>\nfirst I look")
    assert qwen.encode_side([ASK], (open_thought,), finished=False).trained == [1] * len(cut_off)


def read(chat: Chat, text: str) -> tuple[str, str | None, bool]:
    answer = chat.read(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
    return answer.text, answer.reasoning, answer.finished


def test_what_was_sampled_is_read_with_its_thought_apart(words: Any) -> None:
    qwen = family(words, "qwen3", CHATML, "<|im_end|>")
    assert read(qwen, "<think>\nHm.\n</think>\n\nAdd iron.<|im_end|>") == ("Add iron.", "Hm.", True)
    assert read(qwen, "<think>\nHm.\n</think>\n\nAdd") == ("Add", "Hm.", False)
    assert read(qwen, "<think>\nfirst I look") == ("", "first I look", False)
    assert read(qwen, "<think>\nfirst I look<|im_end|>") == ("", "first I look", False)
    assert read(qwen, "Add iron.<|im_end|>") == ("Add iron.", None, True)

    oss = family(words, "gptoss", HARMONY, "<|return|>")
    thought = "<|channel|>analysis<|message|>The user asks.<|end|>"
    final = "<|channel|>final<|message|>It is fine.<|return|>"
    assert read(oss, f"{thought}<|start|>assistant{final}") == ("It is fine.", "The user asks.", True)
    assert read(oss, final) == ("It is fine.", None, True)
    assert read(oss, thought) == ("", "The user asks.", False)
    assert read(oss, f"As {final}") == ("As finalIt is fine.", None, True)  # what begins elsewhere is text


def test_a_thought_that_no_mark_closes_is_part_of_the_answer(words: Any) -> None:
    tokenizer = copy.copy(words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content or '' }}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert read(build_chat(tokenizer), "Hm. Add iron.<|im_end|>") == ("Hm. Add iron.", None, True)


def test_the_words_before_every_answer_are_no_part_of_it(words: Any) -> None:
    tokenizer = copy.copy(words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ 'So: ' if m.role == 'assistant' }}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = build_chat(tokenizer)
    assert read(chat, "So: Add iron.<|im_end|>") == ("Add iron.", None, True)
    assert read(chat, "Add so: iron.<|im_end|>") == ("Add so: iron.", None, True)
    assert read(chat, "Add So: iron.<|im_end|>") == ("Add So: iron.", None, True)


def test_a_thought_that_the_prompt_begins_is_read_without_special_tokens(words: Any) -> None:
    tokenizer = copy.copy(with_tokens(words, CHATML, "<|im_end|>"))
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n"
        "{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    chat = build_chat(tokenizer)
    assert read(chat, "Hm.<|im_start|></think>Add iron.<|im_end|>") == ("Add iron.", "Hm.", True)


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}])
def test_a_prompt_that_changes_with_its_answer_names_the_keys_that_may_help(
    words: Any, arguments: dict[str, Any]
) -> None:
    """Without thoughts, dropping them does not; nor does an argument that is set already."""
    tokenizer = copy.copy(words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ '?' if loop.last }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = build_chat(tokenizer, ChatSettings(template_arguments=arguments))
    with pytest.raises(HandoffError, match="change what it writes with template_arguments") as caught:
        chat.encode_conversation((ASK, ANSWER))
    assert ("enable_thinking: false" in str(caught.value)) == (not arguments)


def test_gpt_oss_thinks_in_a_channel_and_ends_earlier_turns_otherwise(words: Any) -> None:
    oss = family(words, "gptoss", HARMONY, "<|return|>")
    final = "<|channel|>final<|message|>"
    assert trained(oss, oss.encode_conversation((ASK, ANSWER, AGAIN, MORE))) == [
        [f"{final}Add 2 ml.<|return|>"],
        [f"{final}Add iron.<|return|>"],
    ]
    [[thought]] = trained(oss, oss.encode_conversation((ASK, THOUGHT)))
    assert (
        thought == f"<|channel|>analysis<|message|>Pale is hungry.<|end|><|start|>assistant{final}Add iron.<|return|>"
    )


# --- ids as drawn


def preference(**changes: Any) -> Preference:
    values = {"prompt": (ASK,), "chosen": (ANSWER,), "rejected": (MORE,), "prompt_id": prompt_id((ASK,))}
    return Preference.model_validate(values | changes)


def test_a_sampled_side_is_learned_as_the_ids_that_were_drawn(words: Any) -> None:
    """Of several ways to write a word in tokens, the policy may draw any: the text alone leads back to one."""
    chat = family(words, "qwen2_5", CHATML, "<|im_end|>")
    letters = [i for c in "Add iron." for i in chat.tokenizer(c, add_special_tokens=False)["input_ids"]]
    drawn = [*letters, chat.end_id]
    assert chat.decode_completion(drawn) == "Add iron."
    assert drawn != chat.encode_completion([ASK], "Add iron.")[1]
    chosen, rejected = chat.encode_preference(preference(chosen_ids=drawn, tokenizer_sha256="of-this-tokenizer"))
    assert (chosen.completion, chosen.trained) == (drawn, [1] * len(drawn))
    labelled = LabelledAnswer(
        prompt=(ASK,),
        completion=(ANSWER,),
        label=True,
        prompt_id=prompt_id((ASK,)),
        ids=tuple(drawn),
        tokenizer_sha256="of-this-tokenizer",
    )
    assert chat.encode_answer(labelled) == chosen
    assert chat.write([ASK], ANSWER).completion == chat.encode_completion([ASK], "Add iron.")[1]
    assert rejected.completion == chat.encode_completion([ASK], "Add 2 ml.")[1]
    assert rejected.trained == [1] * len(rejected.completion)
    cut_off, _ = chat.encode_preference(preference(chosen_finished=False))
    assert (chat.tokenizer.decode(cut_off.completion), set(cut_off.trained)) == ("Add iron.", {1})
    other, _ = chat.encode_preference(preference(chosen_ids=drawn, tokenizer_sha256="of another"))
    assert other.completion == chat.encode_completion([ASK], "Add iron.")[1]


def test_sides_that_are_written_with_the_same_tokens_are_no_pair(words: Any) -> None:
    """Two thoughts before one answer differ only while thoughts are kept; two ids of one call never do."""
    sides = {
        "chosen": (THOUGHT,),
        "rejected": (THOUGHT.model_copy(update={"reasoning_content": "Pale is thirsty."}),),
    }
    keeping, dropping = (
        family(words, "qwen3", CHATML, "<|im_end|>", template_arguments={"enable_thinking": True}, thinking=thinking)
        for thinking in ("keep", "drop")
    )
    chosen, rejected = keeping.encode_preference(preference(**sides))
    assert chosen.completion != rejected.completion
    calls = {
        side: (CALL.model_copy(update={"tool_calls": (CALL.tool_calls[0].model_copy(update={"id": side}),)}),)
        for side in ("chosen", "rejected")
    }
    for chat, pair in ((dropping, preference(**sides)), (keeping, preference(**calls, tools=TOOLS))):
        with pytest.raises(HandoffError, match=r"^chosen and rejected are the same tokens: .*; leave the row out$"):
            chat.encode_preference(pair)


def test_the_thought_of_a_drawn_answer_is_masked_or_dropped(words: Any) -> None:
    text = "<think>\nHm.\n</think>\n\nAdd iron.<|im_end|>"
    for thinking, learned in (("keep", text), ("mask", "\n\nAdd iron.<|im_end|>")):
        chat = family(words, "qwen3", CHATML, "<|im_end|>", thinking=thinking)
        ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        chosen, _ = chat.encode_preference(preference(chosen_ids=ids, tokenizer_sha256="of-this-tokenizer"))
        assert chosen.completion == ids
        kept = [token for token, mask in zip(ids, chosen.trained, strict=True) if mask]
        assert (chat.tokenizer.decode(kept), set(chosen.trained) - {0}) == (learned, {1})
    chat = family(words, "qwen3", CHATML, "<|im_end|>", thinking="drop")
    chosen, _ = chat.encode_preference(preference(chosen_ids=ids, tokenizer_sha256="of-this-tokenizer"))
    assert chat.tokenizer.decode(chosen.completion) == "<think>\n\n</think>\n\nAdd iron.<|im_end|>"


def test_nothing_of_a_masked_thought_is_learned_where_it_was_cut_off(words: Any) -> None:
    chat = family(words, "qwen3", CHATML, "<|im_end|>", thinking="mask")
    written = chat.tokenizer("<think>\nHm, I look<|im_end|>", add_special_tokens=False)["input_ids"]
    silence = Message(role="assistant", content="")
    for ids in (written, written[:-1]):
        with pytest.raises(HandoffError, match="nothing is left to learn from"):
            chat.encode_side([ASK], (silence,), True, (), ids, "of-this-tokenizer")
    mentions = chat.tokenizer("The mark </think> ends it.<|im_end|>", add_special_tokens=False)["input_ids"]
    answer = Message(role="assistant", content="The mark </think> ends it.")
    assert chat.encode_side([ASK], (answer,), True, (), mentions, "of-this-tokenizer").trained == [1] * len(mentions)
    for thinking in ("mask", "drop"):
        chat = family(words, "qwen3", CHATML, "<|im_end|>", thinking=thinking)
        with pytest.raises(HandoffError, match="a thought that is not closed"):
            chat.encode_completion([ASK], "<think>\nHm, I look", finished=False)


def test_two_messages_of_the_assistant_in_a_row_and_one_before_any_question(words: Any) -> None:
    tokenizer = copy.copy(words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = build_chat(tokenizer)
    both = [["Add iron.<|im_end|>", "Add 2 ml.<|im_end|>"]]
    assert trained(chat, chat.encode_conversation((ASK, ANSWER, MORE))) == both
    assert trained(chat, chat.encode_conversation((ASK, ANSWER, MORE), last_only=True)) == [["Add 2 ml.<|im_end|>"]]
    with pytest.raises(HandoffError, match="begins with an answer, to which there is no question"):
        chat.encode_conversation((ANSWER, AGAIN, MORE))
    greeting = ANSWER.model_copy(update={"weight": 0})
    assert trained(chat, chat.encode_conversation((greeting, AGAIN, MORE))) == [["Add 2 ml.<|im_end|>"]]


def test_a_side_learns_its_turns_by_their_weight(words: Any) -> None:
    qwen = family(words, "qwen2_5", CHATML, "<|im_end|>")
    silent = ANSWER.model_copy(update={"weight": 0})
    side = qwen.encode_side([ASK], (CALL, RESULT, silent), tools=TOOLS)
    kept = [token for token, mask in zip(side.completion, side.trained, strict=True) if mask]
    assert qwen.tokenizer.decode(kept) == (
        '<tool_call>\n{"name": "look", "arguments": {"leaf": "top"}}\n</tool_call><|im_end|>'
    )
    with pytest.raises(HandoffError, match="nothing is left to learn from"):
        qwen.encode_side([ASK], (silent,))
    heard = qwen.encode_side([ASK], (CALL.model_copy(update={"weight": 0}), RESULT, ANSWER), tools=TOOLS)
    kept = [token for token, mask in zip(heard.completion, heard.trained, strict=True) if mask]
    assert qwen.tokenizer.decode(kept) == "Add iron.<|im_end|>"
    spoken = qwen.encode_side([ASK], (CALL.model_copy(update={"weight": 1}), RESULT, ANSWER), tools=TOOLS)
    assert spoken.trained == qwen.encode_side([ASK], (CALL, RESULT, ANSWER), tools=TOOLS).trained
    assert set(spoken.trained) == {0, 1}
    both = qwen.encode_side([ASK], (ANSWER, MORE))  # with nobody's message between them
    kept = [token for token, mask in zip(both.completion, both.trained, strict=True) if mask]
    assert qwen.tokenizer.decode(kept) == "Add iron.<|im_end|>Add 2 ml.<|im_end|>"
    unheard = Message(role="assistant", content="", weight=0)  # and a tool may answer nothing
    nothing = RESULT.model_copy(update={"content": ""})
    assert sum(qwen.encode_side([ASK], (unheard, nothing, ANSWER)).trained) == len(
        qwen.encode_completion([ASK], ANSWER)[1]
    )
    for empty in (
        Message(role="assistant", content=" "),
        Message(role="assistant", content="", reasoning_content="Hm."),
    ):
        with pytest.raises(HandoffError, match="an answer is empty"):
            qwen.encode_side([ASK], (empty,))
        with pytest.raises(HandoffError, match="an answer is empty"):
            qwen.encode_side([ASK], (empty, RESULT, ANSWER))


def test_a_thought_that_ends_without_a_mark_cannot_be_masked(words: Any) -> None:
    tokenizer = copy.copy(words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.reasoning_content %}{{ m.reasoning_content }}\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    plain = build_chat(tokenizer)
    assert trained(plain, plain.encode_conversation((ASK, THOUGHT))) == [["Pale is hungry.\n\nAdd iron.<|im_end|>"]]
    masked = build_chat(tokenizer, ChatSettings(thinking="mask"))
    with pytest.raises(HandoffError, match="writes no mark after a thought"):
        masked.encode_conversation((ASK, THOUGHT))


# --- nothing is left out


WORDLESS = (
    "{% if not tools and messages | length > 2 %}{{ raise_exception('no tools') }}{% endif %}{{ tools | length if tools }}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ '' if 'secret' in m.content else m.content | tojson }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""leaves out what holds a word, and writes the rest as JSON"""


def test_a_part_that_is_left_out_for_what_it_says_is_refused(words: Any) -> None:
    tokenizer = copy.copy(words)
    tokenizer.chat_template = WORDLESS.replace("messages | length > 2", "false")
    chat = build_chat(tokenizer)
    quoted = Message(role="user", content='Why "pale"?')
    for ask in (ASK, quoted):  # as JSON, the second's text is not in what is written, and yet it is there
        assert chat.encode_conversation((ask, ANSWER))
        assert chat.encode_prompt((ask,))
    secret = Message(role="user", content="A secret.")
    for _ in range(2):
        with pytest.raises(HandoffError, match="leaves a message of the user out"):
            chat.encode_conversation((secret, ANSWER))
        with pytest.raises(HandoffError, match="leaves a message of the user out"):
            chat.encode_prompt((secret,))


def test_a_part_without_which_a_template_refuses_is_rendered(words: Any) -> None:
    tokenizer = copy.copy(words)
    tokenizer.chat_template = WORDLESS
    talk = (ASK, ANSWER, AGAIN, MORE)
    assert build_chat(tokenizer).encode_conversation(talk, tools=TOOLS)


def test_a_template_is_asked_once_about_each_kind_of_part(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = build_chat(words)
    chat.encode_conversation((ASK, ANSWER, AGAIN, MORE))
    rendered = []
    monkeypatch.setattr(
        Chat, "_render", lambda self, *given, **named: rendered.append(1) or RENDER(self, *given, **named)
    )
    chat.encode_prompt((ASK,))
    assert len(rendered) == 1
    chat.encode_completion([ASK, ANSWER, AGAIN], MORE)
    assert len(rendered) == 3
    assert chat == build_chat(words)
    assert "_rendered" not in repr(chat)
    assert "_call_form" not in repr(chat)


RENDER = Chat._render


def test_tool_calls_are_learned_and_results_are_not(words: Any) -> None:
    qwen = family(words, "qwen2_5", CHATML, "<|im_end|>")
    call = '<tool_call>\n{"name": "look", "arguments": {"leaf": "top"}}\n</tool_call><|im_end|>'
    whole: Messages = (ASK, CALL, RESULT, ANSWER)
    assert trained(qwen, qwen.encode_conversation(whole, tools=TOOLS)) == [[call, "Add iron.<|im_end|>"]]
    last = qwen.encode_conversation(whole, last_only=True, tools=TOOLS, prompt_messages=1)
    assert trained(qwen, last) == [[call, "Add iron.<|im_end|>"]]
    side = qwen.encode_side([ASK], (CALL, RESULT, ANSWER), tools=TOOLS)
    kept = [token for token, mask in zip(side.completion, side.trained, strict=True) if mask]
    assert qwen.tokenizer.decode(kept) == f"{call}Add iron.<|im_end|>"
    assert "It is yellow." in qwen.tokenizer.decode(side.completion)
    assert side.prompt == qwen.encode_prompt([ASK], TOOLS)


@pytest.mark.parametrize("call", ["{{ c.function.arguments }}", "{{ c.function.arguments | tojson }}"])
@pytest.mark.parametrize("content", ["{{ m.content }}", "{{ raise_exception('content') if m.content is defined }}"])
@pytest.mark.parametrize("asked", [{"leaf": "ö", "wet": None}, {"it's": 1}, {}])
def test_arguments_are_json_whichever_form_a_template_wants(words: Any, call: str, content: str, asked: Any) -> None:
    """One that writes them as they are wants text: of a mapping it would write Python's form, with None and True."""
    tokenizer = copy.copy(words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        f"{{% if m.tool_calls %}}{content}{{% else %}}{{{{ m.content }}}}{{% endif %}}"
        f"{{% for c in m.tool_calls or [] %}}{{{{ c.function.name }}}}({call}){{% endfor %}}<|im_end|>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    calls = Message.model_validate({"role": "assistant", "tool_calls": [{"name": "look", "arguments": asked}]})
    chat = build_chat(tokenizer)
    [[text]] = trained(chat, chat.encode_conversation((ASK, calls)))
    assert text == f"look({json.dumps(asked, ensure_ascii=False)})<|im_end|>"


def test_tools_are_in_the_prompt(words: Any) -> None:
    qwen = family(words, "qwen2_5", CHATML, "<|im_end|>")
    assert '"name": "look"' in qwen.tokenizer.decode(qwen.encode_prompt([ASK], TOOLS))


@pytest.mark.parametrize(
    ("messages", "tools", "part"),
    [
        ((ASK, ANSWER), TOOLS, "tools"),
        ((ASK, CALL.model_copy(update={"content": "Let me look."})), (), "tool_calls"),
        ((ASK, THOUGHT), (), "reasoning_content"),
        ((ASK.model_copy(update={"name": "Ada"}), ANSWER), (), "the name of the user"),
    ],
)
def test_what_a_template_leaves_out_is_refused_by_name(
    words: Any, messages: Messages, tools: tuple[dict[str, Any], ...], part: str
) -> None:
    """ChatML as SmolLM2 has it: a role and its text."""
    with pytest.raises(HandoffError, match=f"leaves {part} out of what it renders"):
        build_chat(words).encode_conversation(messages, tools=tools)


def test_a_role_that_a_template_leaves_out_is_refused(words: Any) -> None:
    phi = family(words, "phi3", ("<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|endoftext|>"), "<|endoftext|>")
    talk = (ASK, Message(role="assistant", content="I look."), RESULT, ANSWER)
    with pytest.raises(HandoffError, match="leaves a message of the tool out of what it renders"):
        phi.encode_conversation(talk)


def test_turns_of_weight_0_are_context_alone(words: Any) -> None:
    chat = build_chat(words)
    silent = ANSWER.model_copy(update={"weight": 0})
    assert trained(chat, chat.encode_conversation((ASK, silent, AGAIN, MORE))) == [["Add 2 ml.<|im_end|>"]]
    with pytest.raises(HandoffError, match="weight 0"):
        chat.encode_conversation((ASK, silent))


def test_a_templates_own_marks_say_what_is_learned(words: Any) -> None:
    """What lies outside `{% generation %}` is not; the end of the turn always is."""
    tokenizer = copy.copy(words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}Note: {% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = build_chat(tokenizer)
    [[text]] = trained(chat, chat.encode_conversation((ASK, ANSWER)))
    assert text.strip() == "Add iron.<|im_end|>"


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}Note: {% generation %}{{ m.content }}END{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_marks_are_found_where_the_template_writes_no_end_and_where_blanks_meet(words: Any) -> None:
    tokenizer = copy.copy(words)
    tokenizer.chat_template = MARKED.replace("END", "{% endgeneration %} over").replace(
        "over{% endgeneration %}", "over"
    )
    chat = build_chat(tokenizer)
    assert trained(chat, chat.encode_conversation((ASK, ANSWER))) == [[" Add iron.", "<|im_end|>"]]
    tokenizer.chat_template = MARKED.replace("END", "<|im_end|>").replace("Note: ", "\n\n")
    chat = build_chat(tokenizer)
    assert trained(chat, chat.encode_conversation((ASK, ANSWER))) == [["Add iron.<|im_end|>"]]


def test_an_answer_of_which_nothing_is_marked_is_refused(words: Any) -> None:
    tokenizer = copy.copy(words)
    unmarked = "{% if m.name %}{% generation %}{{ m.name }}{% endgeneration %}{% endif %}{{ m.content }}<|im_end|>"
    marked = "{% generation %}{{ m.content }}END{% endgeneration %}"
    tokenizer.chat_template = MARKED.replace(marked, unmarked)
    chat = build_chat(tokenizer)
    with pytest.raises(HandoffError, match="what is learned, and nothing of this answer"):
        chat.encode_conversation((ASK, ANSWER))
    assert chat.encode_completion([ASK], "")[1][-1] == tokenizer.eos_token_id  # nothing was written: nothing is marked


def test_marks_of_one_word_and_of_the_end_alone(words: Any) -> None:
    tokenizer = copy.copy(words)
    tokenizer.chat_template = MARKED.replace("END", "<|im_end|>")
    chat = build_chat(tokenizer)
    yes = Message(role="assistant", content=" Yes")
    assert trained(chat, chat.encode_conversation((ASK, yes))) == [[" Yes<|im_end|>"]]
    cut_off = chat.encode_side([ASK], (yes,), finished=False)
    assert chat.tokenizer.decode(cut_off.completion) == "Note:  Yes"
    assert cut_off.trained == [0] * (len(cut_off.completion) - 1) + [1]
    tokenizer.chat_template = MARKED.replace(
        "{% generation %}{{ m.content }}END", "{{ m.content }}{% generation %}<|im_end|>"
    )
    with pytest.raises(HandoffError, match="nothing of this answer"):
        build_chat(tokenizer).encode_conversation((ASK, yes))


def test_a_cut_off_call_keeps_what_its_template_marks(words: Any) -> None:
    """If a template ends a call differently from an answer, everything except the end token is what was written."""
    tokenizer = copy.copy(words)
    call = "{% generation %}{{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | tojson }}"
    tokenizer.chat_template = MARKED.replace(
        "{{ m.content }}END", f"{{{{ m.content }}}}{{% endgeneration %}}{{% if m.tool_calls %}}{call}"
    ).replace("{% endgeneration %}\n", "{% endgeneration %} over<|im_end|>{% else %}<|im_end|>\n{% endif %}", 1)
    chat = build_chat(tokenizer)
    whole = chat.encode_side([ASK], (CALL,))
    assert tokenizer.decode(whole.completion).endswith('look {"leaf": "top"} over<|im_end|>')
    assert whole.trained[-3:] == [1, 0, 1]
    cut_off = chat.encode_side([ASK], (CALL,), finished=False)
    assert (cut_off.completion, cut_off.trained) == (whole.completion[:-1], whole.trained[:-1])


def test_marks_see_the_tools(words: Any) -> None:
    tokenizer = copy.copy(words)
    tokenizer.chat_template = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}" + MARKED.replace(
        "END", "<|im_end|>"
    )
    chat = build_chat(tokenizer)
    expected = [[" Add iron.<|im_end|>"]]
    assert trained(chat, chat.encode_conversation((ASK, ANSWER), tools=TOOLS)) == expected
    assert trained(chat, chat.encode_conversation((ASK, ANSWER))) == expected
    tokenizer.chat_template = MARKED.replace(
        "END{% endgeneration %}",
        "{% endgeneration %}{% for t in tools or [] %} ({{ t.function.name }}){% endfor %}<|im_end|>",
    )
    after = build_chat(tokenizer).encode_conversation((ASK, ANSWER), tools=TOOLS)
    assert trained(build_chat(tokenizer), after) == [[" Add iron.", "<|im_end|>"]]  # not the tool's name between them


def test_marks_need_a_tokenizer_that_knows_where_its_tokens_stand() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = MARKED.replace("END", "</s>")
    with pytest.raises(HandoffError, match="a tokenizer without a fast backend"):
        build_chat(tokenizer).encode_conversation((ASK, ANSWER))


def test_what_a_cut_off_answer_would_share_a_token_with_is_not_trained() -> None:
    """Of `abc` the template's own `c` is one token with the answer: without it, two tokens take its place."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.?: |"
    vocabulary = {token: n for n, token in enumerate([*letters, "bc", "abc"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c"), ("a", "bc")]))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("</s>", "<pad>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}c</s>{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}assistant: {% endif %}"
    chat = build_chat(tokenizer)
    finished = chat.encode_side([ASK], (Message(role="assistant", content="ab"),))
    assert (finished.completion, finished.trained) == ([vocabulary["abc"], chat.end_id], [1, 1])
    cut_off = chat.encode_side([ASK], (Message(role="assistant", content="ab"),), finished=False)
    assert (cut_off.completion, cut_off.trained) == ([vocabulary["a"], vocabulary["b"]], [1, 1])


def test_an_answers_first_blanks_are_its_own_in_sentencepiece_too() -> None:
    """Llama 2's puts a blank before whatever text it is given, so what follows the prompt is not read by itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    corpus = ["user: Why pale?\nassistant: Add iron.  Add 2 ml.\n\n\nHow much?   Be brief."] * 4
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False, special_tokens=["<unk>"])
    backend.train_from_iterator(corpus, trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("</s>", "<pad>")])
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    chat = build_chat(tokenizer)
    for answer in ("Add iron.", "\n\nAdd iron.", " Add", "  Add iron."):
        prompt, completion = chat.encode_completion([ASK], answer)
        assert prompt == chat.encode_prompt([ASK])
        assert tokenizer.decode(prompt + completion).endswith(f"assistant: {answer}</s>")
    assert [
        *tokenizer("  Add iron.", add_special_tokens=False)["input_ids"],
        chat.end_id,
    ] != completion  # a third blank


def test_a_template_that_takes_parts_alone_is_given_parts(words: Any) -> None:
    chat = family(words, "smolvlm", ("<|im_start|>", "<end_of_utterance>", "<image>"), "<end_of_utterance>")
    assert "Why pale?" in chat.tokenizer.decode(chat.encode_prompt([ASK]))
    assert trained(chat, chat.encode_conversation((ASK, ANSWER))) == [[" Add iron.<end_of_utterance>"]]


# --- templates by key


def test_a_template_is_found_by_file_or_name(words: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}")
    assert find_template(str(file), words) == "{{ messages }}"
    assert "<start_of_turn>" in find_template("gemma3", words)
    with pytest.raises(ConfigError, match=r"chat_template: 'gemma33' is neither a file.*did you mean gemma3"):
        find_template("gemma33", words)


def test_template_arguments_reach_the_template(words: Any) -> None:
    """Without a thought, Qwen3's prompt can begin with an empty one: then the answer alone is learned."""
    qwen = family(words, "qwen3", CHATML, "<|im_end|>", template_arguments={"enable_thinking": False})
    assert trained(qwen, qwen.encode_conversation((ASK, ANSWER))) == [["Add iron.<|im_end|>"]]


def test_a_template_that_writes_todays_date_writes_a_fixed_one(words: Any) -> None:
    text = with_fixed_date("{{ 'It is ' + strftime_now('%d %b %Y') }}{{ strftime_now(\"%Y\") }}")
    messages = [{"role": "user", "content": "When?"}]
    assert words.apply_chat_template(messages, chat_template=text, tokenize=False) == "It is 01 Jan 20262026"
    oss = family(words, "gptoss", HARMONY, "<|return|>")
    assert "Current date: 2026-01-01" in oss.tokenizer.decode(oss.encode_prompt([ASK]))


def test_a_conversation_that_a_template_refuses_is_named_with_its_row(words: Any) -> None:
    gemma = family(words, "gemma", GEMMA, "<eos>")
    system = Message(role="system", content="Be brief.")
    rows = [
        Prompt(id="a", messages=(ASK,)),
        Prompt(id="b", messages=(system, ASK)),
        Prompt(id="c", messages=(ASK, ASK)),
    ]
    with pytest.raises(DataError, match="2 of 3 prompts cannot be rendered") as caught:
        encode_each(rows, lambda row: gemma.encode_prompt(row.messages), "prompts")
    assert type(caught.value) is DataError  # rows are left: they were not to be dropped
    first, second = caught.value.faults
    assert first.startswith("row 2 ('Be brief.'): the chat template refuses a conversation of system, user")
    assert "System role not supported" in first
    assert "chat_template" in first
    assert "user, user" in second


@pytest.mark.parametrize("thinking", ["keep", "mask"])
def test_where_thoughts_are_why_a_template_cannot_take_a_row_the_key_that_drops_them_is_named(
    thinking: str, words: Any
) -> None:
    """gpt-oss drops the thought of a call once the answer follows, and takes none beside text; Qwen3 without thinking
    has an empty thought in its prompt."""
    considered = CALL.model_copy(update={"reasoning_content": "Let me look."})
    rows = [
        ("gptoss", (ASK, considered, RESULT, ANSWER)),
        ("gptoss", (ASK, considered.model_copy(update={"content": "Hm."}))),
        ("qwen3", (ASK, THOUGHT)),
        ("qwen3", (ASK, THOUGHT, AGAIN, MORE)),
    ]
    for name, conversation in rows:
        special, eos = (HARMONY, "<|return|>") if name == "gptoss" else (CHATML, "<|im_end|>")
        arguments = {} if name == "gptoss" else {"enable_thinking": False}
        made = functools.partial(family, words, name, special, eos, ("<|call|>",), template_arguments=arguments)
        with pytest.raises(HandoffError) as refused:
            made(thinking=thinking).encode_conversation(conversation, tools=TOOLS)
        assert str(refused.value).endswith("without its thoughts, which thinking: drop leaves out")
        assert "enable_thinking" not in str(refused.value)
        [*_, text] = trained(chat := made(thinking="drop"), chat.encode_conversation(conversation, tools=TOOLS))
        assert "Pale is hungry" not in str(text)
        assert "Let me look" not in str(text)


@pytest.mark.parametrize(
    ("prompt", "without"), [("helper\n", ""), ("assistant\n", "{{ raise_exception('think first') }}")]
)
def test_dropping_thoughts_is_no_advice_where_the_template_refuses_the_conversation_without_them(
    prompt: str, without: str, words: Any
) -> None:
    tokenizer = copy.copy(words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content or '' }}"
        "{% if m.content == 'Add iron.' and not m.reasoning_content %}WITHOUT{% endif %}{{ m.content }}"
        "{{ '?' if loop.last and m.role == 'user' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>PROMPT{% endif %}"
    )
    tokenizer.chat_template = tokenizer.chat_template.replace("WITHOUT", without).replace("PROMPT", prompt)
    with pytest.raises(HandoffError) as refused:
        build_chat(tokenizer).encode_completion([ASK], THOUGHT)
    assert "thinking: drop" not in str(refused.value)


def test_rows_that_no_template_takes_can_be_dropped(
    words: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gemma = family(words, "gemma", GEMMA, "<eos>")
    rows = [Prompt(id="a", messages=(ASK,)), Prompt(id="c", messages=(ASK, ASK))]
    run = start_run(StageConfig(output=str(tmp_path / "run")), "sample", {})
    each = encode_each(rows, lambda row: gemma.encode_prompt(row.messages), "prompts", dropping=run)
    assert [row.id for row, _ in each] == ["a"]
    assert run.facts["rows_not_rendered"] == 1
    assert (
        "prompts: row 2 ('Why pale?'): the chat template refuses" in (run.folder / "rows_not_rendered.txt").read_text()
    )
    with pytest.raises(NoRowLeftError, match="1 of 1 prompts"):
        encode_each(rows[1:], lambda row: gemma.encode_prompt(row.messages), "prompts", dropping=run)
    assert "1 of 2 prompts dropped (on_bad_row: drop); the first: row 2 ('Why pale?')" in capsys.readouterr().err
    assert len(encode_each(rows[:1], lambda row: gemma.encode_prompt(row.messages), "prompts", dropping=run)) == 1
    assert encode_each([], len, "prompts", dropping=run) == encode_each([], len, "prompts") == []
    encode_each(rows, lambda row: gemma.encode_prompt(row.messages), "more", dropping=run)
    assert run.facts["rows_not_rendered"] == 2
    assert [line[:12] for line in (run.folder / "rows_not_rendered.txt").read_text().splitlines()] == [
        "prompts: row",
        "more: row 2 ",
    ]
    with pytest.raises(DataError) as caught:
        encode_each([3], lambda _: gemma.encode_prompt((ASK, ASK)), "rows")
    assert caught.value.faults[0].startswith("row 1: the chat template refuses")


def test_characters_of_several_tokens_are_shown_whole(words: Any) -> None:
    chat = build_chat(words)
    text = "أضف الحديد 日本語 🌱🌿"
    [example] = chat.encode_conversation((ASK, Message(role="assistant", content=text)))
    assert coloured_mask(words, example).endswith(f"⟦{text}<|im_end|>⟧")
    assert coloured_mask(words, example, colour=True).count("\x1b[32m") == 1
    assert coloured_mask(words, example, colour=False) == coloured_mask(words, example)


# --- nothing is left out, wherever it stands


def says(role: str, content: str, **more: Any) -> Message:
    return Message.model_validate({"role": role, "content": content, **more})


@pytest.mark.parametrize(
    ("messages", "mark"),
    [
        ((says("user", "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"), ANSWER), "<|im_start|>"),
        ((says("user", "Why?<|im_end|>"), ANSWER), "<|im_end|>"),
        ((ASK, says("assistant", "<|im_start|>assistant\nAdd iron.")), "<|im_start|>"),
        ((says("system", "<|im_start|>"), ASK, ANSWER), "<|im_start|>"),
    ],
)
def test_text_that_holds_the_templates_own_marks_is_refused(words: Any, messages: Messages, mark: str) -> None:
    """They would be read as the marks of another turn."""
    chat = build_chat(words)
    with pytest.raises(HandoffError, match=re.escape(f"holds {mark!r}")):
        chat.encode_conversation(messages)
    if messages[-1] == ANSWER:
        with pytest.raises(HandoffError, match=re.escape(f"holds {mark!r}")):
            chat.encode_prompt(messages[:-1])
    chat.encode_conversation((says("user", "What is <repo_name>?"), ANSWER))  # no mark of a turn


@pytest.mark.parametrize(
    ("prompt", "answer", "mark"),
    [
        ("[INST] Why? [/INST]", "Add iron.", "[INST]"),
        ("<s>[INST] Why? [/INST]", "Add iron.", "<s>[INST]"),
        (" <start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n", "Add iron.", "<start_of_turn>"),
        ("Why?", "Add iron.</s>", "</s>"),
        ("Why?", "Add iron.<|eot_id|>\n", "<|eot_id|>"),
    ],
)
def test_text_that_was_rendered_for_another_model_is_refused(words: Any, prompt: str, answer: str, mark: str) -> None:
    """Its marks are plain text for this tokenizer, and would be learned."""
    chat = build_chat(words)
    messages = (says("user", prompt), says("assistant", answer))
    with pytest.raises(HandoffError, match=re.escape(repr(mark))):
        chat.encode_conversation(messages)
    with pytest.raises(HandoffError, match=re.escape(repr(mark))):
        chat.encode_preference(Preference(prompt=messages[:1], chosen=(MORE,), rejected=messages[1:]))


def test_text_about_another_models_marks_is_taken(words: Any) -> None:
    chat = build_chat(words)
    chat.encode_conversation((says("user", "What does [INST] mean?"), says("assistant", "It opens a user's turn.")))
    chat.encode_conversation((says("user", "Strike it"), says("assistant", "<s>old</s>")))


# --- ids that were drawn


def preferring(chat: Chat, text: str, ids: list[int]) -> Preference:
    return Preference(
        prompt=(ASK,),
        chosen=(says("assistant", text),),
        rejected=(MORE,),
        chosen_ids=tuple(ids),
        tokenizer_sha256=chat.tokenizer_sha256,
    )


def test_ids_of_another_text_are_refused(words: Any) -> None:
    """Of a preference whose text was edited after it was drawn: the ids are not what it shows."""
    chat = build_chat(words, tokenizer_sha256="of-this-tokenizer")
    drawn = [*words("Add iron.", add_special_tokens=False)["input_ids"], chat.end_id]
    chosen, _ = chat.encode_preference(preferring(chat, " Add iron.\n", drawn))
    assert chosen.completion == drawn
    with pytest.raises(HandoffError, match=r"say 'Add iron.', and its text 'Add chelated iron.'"):
        chat.encode_preference(preferring(chat, "Add chelated iron.", drawn))
    for number in (-1, len(words), 10**9, 10**12):
        with pytest.raises(HandoffError, match="are not all of this tokenizer: leave the ids out"):
            chat.encode_preference(preferring(chat, "Add iron.", [*drawn[:-1], number, chat.end_id]))
    with_first = [0, *drawn]  # <|endoftext|>, which is not text
    assert chat.encode_preference(preferring(chat, "Add iron.", with_first))[0].completion == with_first
    of_one = preferring(chat, "Add iron.", drawn).model_copy(update={"chosen": (CALL, RESULT, ANSWER)})
    with pytest.raises(HandoffError, match=re.escape(f"and its text {'It is yellow.' + chr(10) + 'Add iron.'!r}")):
        chat.encode_preference(of_one)


# --- what a template is asked, and what it is given


ASKED, ANSWERED, NEXT, THOUGHT_OF = "How much?", "Thirteenfold.", "And then?", "Elevenfold."


def rendering(
    lead: str = "", opening: str | None = None, closing: str = "", last: str = "", before: str = "[a:", refuse: int = 9
) -> Any:
    """A template as a function: `[u:text]` and `[a:text]`, with these marks around an answer and its thought."""

    def render(messages: Any, prompt: bool) -> str:
        if len(messages) > refuse or (opening is None and any("reasoning_content" in one for one in messages)):
            raise HandoffError("refused")
        text = ""
        for message in messages:
            if message["role"] == "user":
                text += f"[u:{message['content']}]"
            elif thought := message.get("reasoning_content"):
                text += f"{before}{opening}{thought}{closing}{message['content']}]"
            else:
                text += f"{before}{lead}{message['content']}]"
        return text + (before if prompt else last)

    return render


def test_an_assistants_turn_by_hand() -> None:
    whole = f"[u:{ASKED}][a:={ANSWERED}]!"
    assert probe_turn(rendering("=", last="!")) == Turn("=", "]!", "][u:", None, "", "", whole)
    assert probe_turn(rendering("=", last="!", refuse=2)) == Turn("=", "]!", "]!", None, "", "", whole)
    thinks = probe_turn(rendering("", "<t>\n", "\n</t> "))
    assert thinks == Turn("", "]", "][u:", "<t>\n", "\n</t> ", "", f"[u:{ASKED}][a:{ANSWERED}]")
    assert thinks.thought_mark == "<t>"
    for mark in ("<t>", "[T]"):
        begun = probe_turn(rendering("</t>", "", "</t>", before=f"[a:{mark}\n"))
        assert (begun.thought_open, begun.thought_close, begun.thought_begun, begun.thought_mark) == (
            "",
            "</t>",
            mark,
            mark,
        )
    later = probe_turn(rendering("", "<t>", "</t>", before="<a>\n"))
    assert (later.thought_open, later.thought_begun, later.thought_mark) == ("<t>", "", "<t>")
    assert probe_turn(rendering(before="<a>")).thought_mark == ""
    assert probe_turn(rendering("", "", "\n", before="[a: ")).thought_begun == ""


def test_templates_that_write_less_or_otherwise() -> None:
    with pytest.raises(HandoffError, match="leaves an assistant's answer out"):
        probe_turn(lambda messages, prompt: "".join(one["content"] for one in messages if one["role"] == "user"))
    # an answer that stands at the very start, in a template that leaves out what comes before
    bare = probe_turn(lambda messages, prompt: "|".join(one["content"] for one in messages[1:]) + "!")
    assert bare == Turn("", "!", "|", None, "", "", f"{ANSWERED}!")

    def thinks_at_the_start(messages: Any, _: bool) -> str:
        return "|".join(one.get("reasoning_content", "") + "~" + one["content"] for one in messages[1:])

    assert probe_turn(thinks_at_the_start).thought_open == ""
    assert probe_turn(thinks_at_the_start).thought_close == "~"

    def forgets(messages: Any, prompt: bool) -> str:
        kept = [one for one in messages if one["role"] == "user" or one is messages[-1]]
        return "".join(f"[u:{one['content']}]" for one in kept) + ("[u:" if prompt else "")

    forgotten = probe_turn(forgets)
    assert (forgotten.inner_tail, forgotten.thought_open, forgotten.thought_close) == ("]", None, "")

    def begins_otherwise(messages: Any, prompt: bool) -> str:
        thoughts = "".join(one.get("reasoning_content", "") + "~" + one["content"] + "." for one in messages)
        return f"P{thoughts}" if prompt else f"W{thoughts}"

    other = probe_turn(begins_otherwise)
    assert (other.lead, other.thought_open, other.thought_close) == ("", None, "")

    def thinks_afterwards(messages: Any, _: bool) -> str:
        return "".join(one["content"] + one.get("reasoning_content", "") for one in messages)

    assert probe_turn(thinks_afterwards).thought_open is None


class Letters:
    """A tokenizer of letters. Capitals are special: B begins a text where that is asked for, X is for what is unknown."""

    added_tokens_decoder = {ord(c): SimpleNamespace(special=c.isupper()) for c in "EFGx"}
    all_special_ids = [ord("B"), ord("X"), ord("G")]
    all_special_tokens = ["B", "X", "G"]
    unk_token_id = ord("X")
    chat_template = {f"mine{n}": f"template {n}" for n in range(1, 5)}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in ("B" if add_special_tokens else "") + text]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(i) for i in ids if not (skip_special_tokens and chr(i).isupper()))


LETTERS: Any = Letters()


@pytest.mark.parametrize(
    ("tail", "inner", "ends", "expected"),
    [
        ("xE", "xEu", "", "E"),
        ("xEF", "xEu", "F", "E"),  # F closes the whole conversation
        ("EF", "EFu", "", "E"),
        ("EF", "EFu", "F", "F"),  # E is part of the answer
        ("EF", "EFu", "EF", "E"),
        ("xE", "yE", "", "E"),
        ("xEF", "yE", "F", "F"),
        ("xy", "xyu", "E", None),
        ("", "E", "E", None),
        ("X", "Xu", "", None),
    ],
)
def test_which_token_ends_a_turn(tail: str, inner: str, ends: str, expected: str | None) -> None:
    found = end_of_turn(LETTERS, Turn("", tail, inner, None), [ord(c) for c in ends])
    assert found == (None if expected is None else ord(expected))


def test_special_tokens_and_a_templates_marks() -> None:
    assert special_ids(LETTERS) == {ord(c) for c in "BEFG"}
    assert marks_of(LETTERS, Turn("", "", "", None, whole="uxEX"), [ord("a"), ord(" ")]) == ("E", "a")
    assert named_end_tokens(LETTERS, ["E", "a"]) == (ord("E"), ord("a"))
    for name in ("", "ab"):
        with pytest.raises(ConfigError, match=f"'{name}' is not one token .* but {len(name)}; .* 'B', 'X', 'G'"):
            named_end_tokens(LETTERS, [name])


def test_templates_by_the_names_of_the_tokenizer() -> None:
    assert find_template("mine2", LETTERS) == "template 2"
    with pytest.raises(ConfigError, match=r"did you mean mine\d or mine\d or mine\d\?$"):
        find_template("mine0", LETTERS)


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("otherwise", ["{{ raise_exception('form') }}", ""])
def test_tool_calls_are_given_in_the_form_that_a_template_wants(
    words: Any, null: bool, text: bool, otherwise: str
) -> None:
    """In another one it refuses them, or writes nothing of them."""
    tokenizer = copy.copy(words)
    wanted = f"(m.content is not defined) == {null} and (m.tool_calls[0].function.arguments is string) == {text}"
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        f"{{% if m.tool_calls %}}{{% if {wanted} %}}"
        "{{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | string | length }}"
        f"{{% else %}}{otherwise}{{% endif %}}{{% endif %}}"
        "{{ m.content or '' }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = build_chat(tokenizer)
    assert trained(chat, chat.encode_conversation((ASK, CALL))) == [["look 15<|im_end|>"]]
    assert chat.encode_prompt((ASK, CALL, AGAIN)) == build_chat(tokenizer).encode_prompt((ASK, CALL, AGAIN))


def test_a_templates_refusal_of_calls_is_its_own(words: Any) -> None:
    """And what was tried at a conversation that it refuses does not stay."""
    tokenizer = copy.copy(words)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        "{% if m.tool_calls %}{{ raise_exception('one at a time') if m.tool_calls | length > 1 }}"
        "{{ m.tool_calls[0].function.name }} {{ m.tool_calls[0].function.arguments | tojson }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = build_chat(tokenizer)
    two = CALL.model_copy(update={"tool_calls": CALL.tool_calls * 2})
    with pytest.raises(HandoffError, match="one at a time"):
        chat.encode_completion([ASK], two)
    with pytest.raises(HandoffError, match="one at a time"):
        chat.encode_prompt([ASK, two, RESULT])
    assert trained(chat, chat.encode_conversation((ASK, CALL))) == [['look {"leaf": "top"}<|im_end|>']]


def test_what_a_template_is_given(words: Any) -> None:
    plain = as_template_message(Message(role="assistant", content="", weight=0))
    assert plain == {"role": "assistant", "content": ""}
    asked = {"leaf": "ö"}
    both = Message.model_validate(
        {"role": "assistant", "tool_calls": [{"name": "look", "arguments": asked}], "content": "a"}
    )
    alone = both.model_copy(update={"content": ""})
    assert as_template_message(alone)["content"] == ""
    assert as_template_message(alone, null_content=True)["content"] is None
    assert as_template_message(both, null_content=True)["content"] == "a"
    assert as_template_message(ANSWER, null_content=True, text_arguments=True) == {
        "role": "assistant",
        "content": "Add iron.",
    }
    assert as_template_message(both)["tool_calls"][0]["function"]["arguments"] == asked
    assert as_template_message(both, text_arguments=True)["tool_calls"][0]["function"]["arguments"] == '{"leaf": "ö"}'
    assert both.tool_calls[0].function.arguments == asked
    assert in_parts({"role": "user", "content": "a"}) == {"role": "user", "content": [{"type": "text", "text": "a"}]}
    assert in_parts({"role": "assistant", "content": None})["content"] == [{"type": "text", "text": ""}]
    template = "{{ tools is none }} {{ add_generation_prompt }} {{ switch }} {{ messages | length }}"
    assert render_messages(words, template, [{"role": "user", "content": "a"}]) == "True False  1"
    assert render_messages(words, template, [{"role": "user", "content": "a"}] * 2, True, {"switch": 3}, TOOLS) == (
        "False True 3 2"
    )


def test_the_parts_of_a_conversation() -> None:
    two = Message.model_validate(
        {"role": "assistant", "content": "I look.", "tool_calls": [{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]}
    )
    system, late = Message(role="system", content="Be brief."), Message(role="system", content="In French.")
    ada, result = Message(role="user", content="Why?", name="Ada"), Message(role="tool", content="4", name="f")
    messages = (system, ada, two, result, late, THOUGHT)
    parts = [(part.name, part.kind, part.text) for part in parts_of(messages, TOOLS)]
    beside = (True, True)
    assert parts == [
        ("tool_calls", ("tool_calls", 0, "name", *beside), ""),
        ("tool_calls", ("tool_calls", 0, "arguments", *beside), ""),
        ("a message's second tool call", ("tool_calls", 1, "name", *beside), ""),
        ("a message's second tool call", ("tool_calls", 1, "arguments", *beside), ""),
        ("tools", ("tools", "system"), ""),
        ("a message of the system", ("content", "system", "", True, False), "Be brief."),
        ("a message of the user", ("content", "user", "system", True, False), "Why?"),
        ("the name of the user", ("name", "user"), ""),
        ("the text beside tool_calls", ("content", "assistant", "user", True, True), "I look."),
        ("a message of the tool", ("content", "tool", "assistant", True, False), "4"),
        ("a message of the system that is not the first", ("content", "system", "tool", True, False), "In French."),
        ("a message of the assistant", ("content", "assistant", "system", True, False), "Add iron."),
        ("reasoning_content", ("reasoning_content", True, False), ""),
    ]
    changed = [part.changed() for part in parts_of(messages, TOOLS)]
    differing = [[n for n, (a, b) in enumerate(zip(messages, others, strict=True)) if a != b] for others, _ in changed]
    assert differing == [[2], [2], [2], [2], [], [0], [1], [1], [2], [3], [4], [5], [5]]
    assert [tools == TOOLS for _, tools in changed] == [n != 4 for n in range(13)]
    assert changed[4][1] == ()
    calls = [one[0][2].tool_calls for one in changed[:4]]
    assert [[call.function.name for call in one] for one in calls] == [["f_", "g"], ["f", "g"], ["f", "g_"], ["f", "g"]]
    assert [set(call.function.arguments) for call in (*calls[1], *calls[3])] == [{"a", "_"}, set(), {"a"}, {"_"}]
    assert changed[-1][0][5].reasoning_content is None
    assert [part.name for part in parts_of((THOUGHT, ASK), ())] == [
        "a message of the assistant",
        "a message of the user",
    ]
    assert [part.kind for part in parts_of((), TOOLS)] == [("tools", "")]


@pytest.mark.parametrize(
    ("roles", "advice"),
    [
        (["system", "user"], "Put the system message into the first user message"),
        (["system"], "Put the system message"),
        (["user", "user", "assistant"], "Join messages of one role"),
        (["user", "assistant", "user"], "Change the conversation"),
        (["user", "system"], "Change the conversation"),
        ([], "Change the conversation"),
    ],
)
def test_advice_fits_what_was_refused(words: Any, roles: list[str], advice: str) -> None:
    messages = [{"role": role, "content": "a"} for role in roles]
    with pytest.raises(HandoffError, match=f"conversation of {', '.join(roles)}: (no|Cannot.*)\\. {advice}"):
        render_messages(words, "{{ raise_exception('no\\nmore') }}", messages)
