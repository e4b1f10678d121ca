"""What is trained of a conversation, to the letter, with every chat template. Worked by hand from what each family writes.

An answer is trained in the context that the policy sees when it writes it. Where a template leaves an earlier turn as it
was written, one example trains both answers; where it rewrites earlier turns, each answer is an example of its own.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
from templates import TEMPLATES

from tiebreak.chat.build import build_chat
from tiebreak.chat.chat import Chat
from tiebreak.config import ChatSettings
from tiebreak.errors import TiebreakError
from tiebreak.messages import Message

Spans = list[list[str]]
"""the trained text of each example, a run of trained tokens each"""


def both(first: str, second: str) -> Spans:
    """One example that trains two answers."""
    return [[first, second]]


def apart(first: str, second: str) -> Spans:
    """Two examples, the later answer's first."""
    return [[second], [first]]


NO_PREFIX = "renders a prompt differently once the answer follows it"
LEFT_OUT = "leaves {} out of what it renders"
CHATML = both("Feed it daily.<|im_end|>", "Once a week.<|im_end|>")
LLAMA = both("Feed it daily.<|eot_id|>", "Once a week.<|eot_id|>")
GEMMA = both("Feed it daily.<end_of_turn>", "Once a week.<end_of_turn>")
THINKS_NOT = apart("<think>\n\n</think>\n\nFeed it daily.<|im_end|>", "<think>\n\n</think>\n\nOnce a week.<|im_end|>")
# in a prompt `<think>\n` ends with a line break; in an earlier turn that break is one token with the next
CLOSES = apart("\n</think>\n\nFeed it daily.<|im_end|>", "\n</think>\n\nOnce a week.<|im_end|>")
GPT_OSS = apart(
    "<|channel|>final<|message|>Feed it daily.<|return|>", "<|channel|>final<|message|>Once a week.<|return|>"
)

NO_THOUGHT = {"template_arguments": {"enable_thinking": False}}

ANSWERS: dict[str, Spans | str] = {
    "smollm2": CHATML,
    "zephyr": both("Feed it daily.<|endoftext|>", "Once a week.<|endoftext|>"),
    "olmo": both("Feed it daily.<|endoftext|>", "Once a week.<|endoftext|>"),
    "mistral": both(" Feed it daily.</s>", " Once a week.</s>"),
    "llama3": LLAMA,
    "llama3_1": LLAMA,
    "llama3_2": LLAMA,
    "llama3_training": LLAMA,
    "qwen2_5": CHATML,
    "qwen2_5_base": CHATML,
    "qwen2_5_vl": CHATML,
    "qwen3": THINKS_NOT,
    "qwen3_training": both(*(spans[0] for spans in reversed(THINKS_NOT))),
    "qwen3_instruct_2507": CHATML,
    "qwen3_vl": CHATML,
    "qwen3_5_think": CLOSES,
    "qwen3_5_nothink": apart("Feed it daily.<|im_end|>", "Once a week.<|im_end|>"),
    "qwen3_6": CLOSES,
    "qwen3_8": CLOSES,
    "gemma": GEMMA,
    "gemma_training": GEMMA,
    "gemma3": GEMMA,
    "gemma4_v2": both("Feed it daily.<turn|>", "Once a week.<turn|>"),
    "gemma4_v5": both("Feed it daily.<turn|>", "Once a week.<turn|>"),
    "phi3": both("Feed it daily.<|end|>", "Once a week.<|end|>"),
    "phi3_5": both("Feed it daily.<|end|>", "Once a week.<|end|>"),
    "phi3_training": both("Feed it daily.<|end|>", "Once a week.<|end|>"),
    "cohere": both("Feed it daily.<|END_OF_TURN_TOKEN|>", "Once a week.<|END_OF_TURN_TOKEN|>"),
    "cohere2": both(
        "Feed it daily.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "Once a week.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"
    ),
    "deepseekv3": NO_PREFIX,
    "deepseek_r1_distill": NO_PREFIX,
    "gptoss": GPT_OSS,
    "gptoss_training": GPT_OSS,
    "glm4moe": apart("\n<think></think>\nFeed it daily.<|endoftext|>", "\n<think></think>\nOnce a week.<|endoftext|>"),
    "lfm2": CHATML,
    "lfm2_v2": CHATML,
    "lfm2_2_5": CHATML,
    "lfm2_training": CHATML,
    "nemotron_3_nano": NO_PREFIX,
    "nemotron_3_super": NO_PREFIX,
    "nemotron_3_ultra": NO_PREFIX,
    "muse_glimmer": both(" to=user<|message|>Feed it daily.<|eot|>", " to=user<|message|>Once a week.<|eot|>"),
    "llava_next": both(" Feed it daily.</s>", " Once a week.</s>"),
    "idefics3": both(" Feed it daily.<end_of_utterance>", " Once a week.<end_of_utterance>"),
    "smolvlm": both(" Feed it daily.<end_of_utterance>", " Once a week.<end_of_utterance>"),
}
"""of a system's message and two turns; a text where the row is refused"""

WITHOUT_SYSTEM = {"gemma", "gemma_training", "mistral"}

SETTINGS: list[tuple[str, dict[str, Any], Spans]] = [
    ("nemotron_3_nano", NO_THOUGHT, CHATML),
    ("nemotron_3_super", NO_THOUGHT, CHATML),
    ("nemotron_3_ultra", NO_THOUGHT, CHATML),
    ("qwen3", NO_THOUGHT, apart("Feed it daily.<|im_end|>", "Once a week.<|im_end|>")),
    ("qwen3_5_think", NO_THOUGHT, apart("Feed it daily.<|im_end|>", "Once a week.<|im_end|>")),
    ("qwen3_8", NO_THOUGHT, CHATML),
    ("glm4moe", NO_THOUGHT, apart("\nFeed it daily.<|endoftext|>", "\nOnce a week.<|endoftext|>")),
    ("qwen3_5_nothink", {"template_arguments": {"enable_thinking": True}}, CLOSES),
    ("qwen3", {"chat_template": "qwen3_training"}, both(*(spans[0] for spans in reversed(THINKS_NOT)))),
]
"""of the same conversation, with other arguments of the template"""

THOUGHTS: dict[str, str] = {
    "qwen3": "<think>\nBasil drinks a lot.\n</think>\n\nFeed it daily.<|im_end|>",
    "qwen3_training": "<think>\nBasil drinks a lot.\n</think>\n\nFeed it daily.<|im_end|>",
    "qwen3_5_think": "Basil drinks a lot.\n</think>\n\nFeed it daily.<|im_end|>",
    "qwen3_6": "Basil drinks a lot.\n</think>\n\nFeed it daily.<|im_end|>",
    "qwen3_8": "Basil drinks a lot.\n</think>\n\nFeed it daily.<|im_end|>",
    "gemma4_v5": "<|channel>thought\nBasil drinks a lot.\n<channel|>Feed it daily.<turn|>",
    "gptoss": "<|channel|>analysis<|message|>Basil drinks a lot.<|end|><|start|>assistant"
    "<|channel|>final<|message|>Feed it daily.<|return|>",
    "gptoss_training": "<|channel|>analysis<|message|>Basil drinks a lot.<|end|><|start|>assistant"
    "<|channel|>final<|message|>Feed it daily.<|return|>",
    "glm4moe": "\n<think>Basil drinks a lot.</think>\nFeed it daily.<|endoftext|>",
    "lfm2_2_5": "<think>Basil drinks a lot.</think>Feed it daily.<|im_end|>",
    "nemotron_3_nano": "Basil drinks a lot.\n</think>\nFeed it daily.<|im_end|>",
    "nemotron_3_super": "Basil drinks a lot.\n</think>\nFeed it daily.<|im_end|>",
    "nemotron_3_ultra": "Basil drinks a lot.</think>Feed it daily.<|im_end|>",
    "muse_glimmer": " to=self<|message|>Basil drinks a lot.<|eom|><|start|>assistant"
    " to=user<|message|>Feed it daily.<|eot|>",
}
"""of one turn with `reasoning_content`; every other template is refused one"""

JSON_CALL = '<tool_call>\n{"name": "feeding_plan", "arguments": {"crop": "basil"}}\n</tool_call><|im_end|>'
XML_CALL = (
    "<tool_call>\n<function=feeding_plan>\n<parameter=crop>\nbasil\n</parameter>\n</function>\n</tool_call><|im_end|>"
)
PYTHON_CALL = "<|tool_call_start|>[feeding_plan(crop='basil')]<|tool_call_end|><|im_end|>"
LLAMA_CALL = both('{"name": "feeding_plan", "parameters": {"crop": "basil"}}<|eot_id|>', "Feed it daily.<|eot_id|>")
ATEM_CALL = (
    ' to=feeding_plan<|message|><atem:function_calls>\n<atem:invoke name="feeding_plan">\n'
    '<atem:parameter name="crop">basil</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eot|>'
)
GPT_OSS_CALL = both(
    ' to=functions.feeding_plan<|channel|>commentary json<|message|>{"crop": "basil"}<|call|>',
    "<|channel|>final<|message|>Feed it daily.<|return|>",
)
XML_CALLS = apart(f"\n</think>\n\n{XML_CALL}", "\n</think>\n\nFeed it daily.<|im_end|>")
GEMMA_CALL = '<|tool_call>call:feeding_plan{crop:<|"|>basil<|"|>}<tool_call|>'
CALLS: dict[str, Spans] = {
    "llama3_1": LLAMA_CALL,
    "llama3_2": LLAMA_CALL,
    "qwen2_5": both(JSON_CALL, "Feed it daily.<|im_end|>"),
    "qwen2_5_base": both(JSON_CALL, "Feed it daily.<|im_end|>"),
    "qwen3": apart(f"<think>\n\n</think>\n\n{JSON_CALL}", "<think>\n\n</think>\n\nFeed it daily.<|im_end|>"),
    "qwen3_training": both(f"<think>\n\n</think>\n\n{JSON_CALL}", "<think>\n\n</think>\n\nFeed it daily.<|im_end|>"),
    "qwen3_instruct_2507": both(JSON_CALL, "Feed it daily.<|im_end|>"),
    "qwen3_vl": both(JSON_CALL, "Feed it daily.<|im_end|>"),
    "qwen3_5_think": XML_CALLS,
    "qwen3_5_nothink": both(XML_CALL, "Feed it daily.<|im_end|>"),
    "qwen3_6": XML_CALLS,
    "qwen3_8": XML_CALLS,
    "gemma4_v2": both(f"{GEMMA_CALL}<turn|>", "Feed it daily.<turn|>"),
    "gemma4_v5": both(f"{GEMMA_CALL}<|tool_response>", "Feed it daily.<turn|>"),
    "gptoss": GPT_OSS_CALL,
    "gptoss_training": GPT_OSS_CALL,
    "glm4moe": apart(
        "\n<think></think>\n<tool_call>feeding_plan\n<arg_key>crop</arg_key>\n<arg_value>basil</arg_value>\n</tool_call>"
        "<|endoftext|>",
        "\n<think></think>\nFeed it daily.<|endoftext|>",
    ),
    "lfm2_v2": both(PYTHON_CALL, "Feed it daily.<|im_end|>"),
    "lfm2_2_5": both(PYTHON_CALL, "Feed it daily.<|im_end|>"),
    "muse_glimmer": both(ATEM_CALL, " to=user<|message|>Feed it daily.<|eot|>"),
}
"""of a call, its result and an answer; every other template is refused tools"""

FEEDING_PLAN = {
    "type": "function",
    "function": {
        "name": "feeding_plan",
        "description": "How often a crop is fed.",
        "parameters": {"type": "object", "properties": {"crop": {"type": "string"}}, "required": ["crop"]},
    },
}


@functools.cache
def tokenizer_of(name: str) -> Any:
    """A template's tokenizer, its padding apart from its end."""
    template = TEMPLATES[name]
    tokenizer = template.tokenizer()
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = next(token for token in template.special if token != tokenizer.eos_token)
    return tokenizer


def load(name: str, **settings: Any) -> Chat:
    """A template's chat, with what its family's models name as end tokens."""
    template, tokenizer = TEMPLATES[name], tokenizer_of(name)
    stops = [tokenizer.convert_tokens_to_ids(token) for token in template.stops]
    tokenizer.chat_template = template.text
    if settings.get("chat_template"):
        tokenizer.chat_template = TEMPLATES[settings["chat_template"]].text
    return build_chat(tokenizer, ChatSettings.model_validate(settings), stops, name=name)


def trained(chat: Chat, messages: Sequence[Message], last_only: bool = False, tools: Sequence[Any] = ()) -> Spans:
    """The trained text of each example."""
    examples = chat.encode_conversation(tuple(messages), last_only, tools)
    spans = []
    for example in examples:
        pairs = zip(example.input_ids, example.loss_mask, strict=True)
        runs = [(mask, [token for token, _ in run]) for mask, run in itertools.groupby(pairs, lambda pair: pair[1])]
        spans.append([str(chat.tokenizer.decode(ids)) for mask, ids in runs if mask])
        whole = str(chat.tokenizer.decode(example.input_ids))
        assert all(message.content.strip().rpartition("</think>")[2].strip() in whole for message in messages[:2])
    return spans


def says(role: str, content: str, **more: Any) -> Message:
    return Message.model_validate({"role": role, "content": content, **more})


THOUGHT_OUT = [
    says("user", "How often do I feed basil?"),
    says("assistant", "Feed it daily.", reasoning_content="Basil drinks a lot."),
]


def two_turns(name: str) -> list[Message]:
    messages = [
        says("system", "Be brief."),
        says("user", "How often do I feed basil?"),
        says("assistant", "Feed it daily."),
        says("user", "And mint?"),
        says("assistant", "Once a week."),
    ]
    return messages[1:] if name in WITHOUT_SYSTEM else messages


def test_every_template_is_worked_by_hand() -> None:
    assert {template.name for template in TEMPLATES.values() if not template.arguments} == ANSWERS.keys()


@pytest.mark.parametrize("name", ANSWERS)
def test_all_answers_of_a_conversation_are_trained(name: str) -> None:
    expected = ANSWERS[name]
    if isinstance(expected, str):
        with pytest.raises(TiebreakError, match=re.escape(expected)):
            trained(load(name), two_turns(name))
    else:
        assert trained(load(name), two_turns(name)) == expected


@pytest.mark.parametrize("name", [name for name, expected in ANSWERS.items() if not isinstance(expected, str)])
def test_the_last_answer_alone(name: str) -> None:
    assert trained(load(name), two_turns(name), last_only=True) == [[ANSWERS[name][0][-1]]]


@pytest.mark.parametrize(("name", "settings", "expected"), SETTINGS)
def test_a_template_reads_its_arguments(name: str, settings: dict[str, Any], expected: Spans) -> None:
    assert trained(load(name, **settings), two_turns(name)) == expected


@pytest.mark.parametrize(
    ("name", "thinking", "expected"),
    [
        ("qwen3", "drop", "<think>\n\n</think>\n\nFeed it daily.<|im_end|>"),
        ("qwen3", "mask", "\n\nFeed it daily.<|im_end|>"),
        ("qwen3_5_think", "mask", "\n\nFeed it daily.<|im_end|>"),
        ("nemotron_3_nano", "mask", "\nFeed it daily.<|im_end|>"),
        ("gptoss", "drop", "<|channel|>final<|message|>Feed it daily.<|return|>"),
        ("gptoss", "mask", "Feed it daily.<|return|>"),
        ("gemma4_v5", "mask", "Feed it daily.<turn|>"),
    ],
)
def test_thoughts_are_dropped_or_masked(name: str, thinking: str, expected: str) -> None:
    assert trained(load(name, thinking=thinking), THOUGHT_OUT) == [[expected]]


@pytest.mark.parametrize("name", sorted(WITHOUT_SYSTEM))
def test_a_template_without_a_system_message_refuses_one(name: str) -> None:
    with pytest.raises(TiebreakError, match="system"):
        trained(load(name), [says("system", "Be brief."), *two_turns(name)])


@pytest.mark.parametrize("name", ANSWERS)
def test_thoughts_are_trained_or_refused(name: str) -> None:
    if name in THOUGHTS:
        assert trained(load(name), THOUGHT_OUT) == [[THOUGHTS[name]]]
    else:
        with pytest.raises(TiebreakError, match=f"{LEFT_OUT.format('reasoning_content')}|{NO_PREFIX}"):
            trained(load(name), THOUGHT_OUT)


@pytest.mark.parametrize("name", ANSWERS)
def test_calls_of_tools_are_trained_and_their_results_are_not(name: str) -> None:
    call = {"id": "1", "function": {"name": "feeding_plan", "arguments": {"crop": "basil"}}}
    messages = [
        says("user", "How often do I feed basil?"),
        says("assistant", "", tool_calls=[call]),
        says("tool", "daily", tool_call_id="1", name="feeding_plan"),
        says("assistant", "Feed it daily."),
    ]
    if name in CALLS:
        assert trained(load(name), messages, tools=[FEEDING_PLAN]) == CALLS[name]
    else:
        with pytest.raises(TiebreakError):
            trained(load(name), messages, tools=[FEEDING_PLAN])


@pytest.mark.parametrize("name", ["smollm2", "zephyr", "mistral", "phi3", "cohere", "lfm2"])
def test_a_template_that_writes_no_calls_says_so(name: str) -> None:
    """Such templates read a content from every message: a form without one says nothing about the data."""
    call = {"id": "1", "function": {"name": "feeding_plan", "arguments": {"crop": "basil"}}}
    for messages in ([says("assistant", "", tool_calls=[call])], [says("assistant", "Look.", tool_calls=[call])]):
        with pytest.raises(TiebreakError, match=f"{LEFT_OUT.format('tool_calls')}.*chat_template, or remove it from"):
            trained(load(name), [says("user", "How often do I feed basil?"), *messages])


@pytest.mark.parametrize("name", ANSWERS)
def test_sampling_stops_at_what_is_trained_as_the_end(name: str) -> None:
    chat, template = load(name), TEMPLATES[name]
    stops = {str(chat.tokenizer.decode([token])) for token in chat.stop_ids}
    assert stops >= {template.eos, *template.stops}
    assert any(template.writes.endswith(stop) for stop in stops)


# --- what a template leaves out, wherever it stands ---

ASK, REPLY = says("user", "How often do I feed basil?"), says("assistant", "Feed it daily.")
SYSTEM, LATER = says("system", "Be brief."), says("system", "Now in French.")
NEXT, SECOND = says("user", "And mint?"), says("assistant", "Once a week.")
LOOK = {"function": {"name": "feeding_plan", "arguments": {"crop": "basil"}}}
MINT = {"function": {"name": "feeding_plan", "arguments": {"crop": "mint"}}}
FOUND = says("tool", "daily", name="feeding_plan")


@pytest.mark.parametrize(
    ("name", "messages", "part"),
    [
        ("qwen3_vl", (SYSTEM, ASK, REPLY, LATER, NEXT, SECOND), "a message of the system that is not the first"),
        ("gptoss", (SYSTEM, LATER, ASK, REPLY), "a message of the system that is not the first"),
        (
            "llama3_1",
            (ASK, says("assistant", "I look.", tool_calls=[LOOK]), FOUND, REPLY),
            "the text beside tool_calls",
        ),
        ("muse_glimmer", (ASK, says("assistant", "I look.", tool_calls=[LOOK])), "the text beside tool_calls"),
        ("gptoss", (ASK, says("assistant", "", tool_calls=[LOOK, MINT])), "a message's second tool call"),
    ],
)
def test_a_part_that_is_left_out_in_one_place_alone_is_refused(
    name: str, messages: tuple[Message, ...], part: str
) -> None:
    """In another place the template renders it, which must not vouch for this one."""
    chat = load(name)
    calls = says("assistant", "", tool_calls=[LOOK])
    trained(chat, (SYSTEM, ASK, REPLY))
    if name != "qwen3_vl":
        trained(chat, (ASK, calls, FOUND, REPLY), tools=[FEEDING_PLAN])
    tools = [FEEDING_PLAN] if any(message.tool_calls for message in messages) else []
    for _ in range(2):
        with pytest.raises(TiebreakError, match=re.escape(f"leaves {part} out of what it renders")):
            trained(chat, messages, tools=tools)
        with pytest.raises(TiebreakError, match=re.escape(f"leaves {part} out of what it renders")):
            chat.encode_prompt((*messages, NEXT), tools)


def test_a_conversation_that_was_refused_vouches_for_no_other() -> None:
    """Gemma refuses two messages of one role, and leaves tools out: the first must not hide the second."""
    for first in ((ASK, NEXT, REPLY), (ASK, says("assistant", "I look.", tool_calls=[LOOK]), NEXT, NEXT, REPLY)):
        chat = load("gemma")
        with pytest.raises(TiebreakError, match="refuses a conversation"):
            trained(chat, first, tools=[FEEDING_PLAN])
        with pytest.raises(TiebreakError, match="leaves tools out"):
            trained(chat, (ASK, REPLY), tools=[FEEDING_PLAN])
        with pytest.raises(TiebreakError, match="leaves tool_calls out"):
            trained(chat, (ASK, says("assistant", "I look.", tool_calls=[LOOK])))


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "gemma4_v5", "lfm2_v2", "glm4moe"])
def test_calls_beside_text_and_beside_one_another_are_trained(name: str) -> None:
    [[text]] = trained(load(name), (ASK, says("assistant", "I look.", tool_calls=[LOOK, MINT])), tools=[FEEDING_PLAN])
    assert all(part in text for part in ("I look.", "basil", "mint"))
    assert text.index("basil") < text.index("mint")


# --- thoughts in the text ---


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_6", "qwen3_8", "nemotron_3_nano", "nemotron_3_ultra"])
@pytest.mark.parametrize("mark", ["<think>\n", "<think>", "", "\n<think>\n"])
def test_a_thought_that_the_prompt_begins_is_begun_once(name: str, mark: str) -> None:
    """Data bring the mark that opens a thought or leave it out; the prompt ends with it."""
    text = f"{mark}Basil drinks a lot.\n</think>\n\nFeed it daily."
    assert trained(load(name), (ASK, says("assistant", text))) == [[THOUGHTS[name]]]


def test_a_cut_off_thought_that_the_prompt_begins_is_no_answer() -> None:
    chat = load("qwen3_5_think")
    with pytest.raises(TiebreakError, match="a thought that is not closed"):
        chat.encode_completion([ASK], "<think>\nBasil drinks")
    prompt, cut_off = chat.encode_completion([ASK], "<think>\nBasil drinks", finished=False)
    assert chat.tokenizer.decode(prompt).endswith("<think>\n")
    assert chat.tokenizer.decode(cut_off) == "Basil drinks"


@pytest.mark.parametrize("name", ["qwen3", "lfm2_2_5", "glm4moe"])
def test_a_mark_that_the_template_would_cut_the_answer_at_is_refused(name: str) -> None:
    """These split a message's content at </think>, whoever wrote it."""
    for text, thought in (
        ("Write </think> to close.", None),
        ("<think>a</think>b</think>c", None),
        ("b</think>c", "a"),
        ("b", "a</think>c"),
    ):
        with pytest.raises(TiebreakError, match="'</think>', which the chat template takes for the end of a thought"):
            trained(load(name), (ASK, says("assistant", text, reasoning_content=thought)))


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_6", "glm4moe", "nemotron_3_nano"])
@pytest.mark.parametrize("text", ["Write <think>a</think> so.", "<think>Of <think>.</think>So."])
def test_an_answer_about_thoughts_marks_is_not_cut_into_a_thought_and_the_rest(name: str, text: str) -> None:
    """Where the prompt opens the thought, the text before `</think>` is one, but not if it holds the mark itself."""
    with pytest.raises(TiebreakError, match="'</think>', which the chat template takes for the end of a thought"):
        trained(load(name), [says("user", "How?"), says("assistant", text)])


@pytest.mark.parametrize("name", ["smollm2", "qwen3", "gptoss", "llama3"])
def test_an_answer_without_a_question_is_context_alone(name: str) -> None:
    greeting, asked = says("assistant", "Hello."), [says("user", "Why?"), says("assistant", "Iron.")]
    with pytest.raises(TiebreakError, match="begins with an answer, to which there is no question: give it weight 0"):
        trained(load(name), [greeting, *asked])
    kept = trained(load(name), [greeting.model_copy(update={"weight": 0}), *asked])
    assert kept == trained(load(name), [greeting, *asked], last_only=True)
    assert "Iron." in kept[0][0]
    assert "Hello." not in "".join(kept[0])


@pytest.mark.parametrize("name", ["qwen3_training", "qwen3"])
def test_a_dropped_thought_is_in_no_context_either(name: str) -> None:
    """Between a call and its answer both templates keep thoughts; a policy without thoughts never sees one."""
    calls = says("assistant", "", tool_calls=[LOOK], reasoning_content="Basil drinks a lot.")
    chat = load(name, thinking="drop")
    for first in (calls, says("assistant", "<think>\nBasil drinks a lot.\n</think>\n\n", tool_calls=[LOOK])):
        for example in chat.encode_conversation((ASK, first, FOUND, REPLY), tools=[FEEDING_PLAN]):
            assert "Basil drinks a lot." not in chat.tokenizer.decode(example.input_ids)
        assert "Basil drinks a lot." not in chat.tokenizer.decode(
            chat.encode_prompt((ASK, first, FOUND), [FEEDING_PLAN])
        )
    kept = load(name).encode_conversation((ASK, calls, FOUND, REPLY), tools=[FEEDING_PLAN])
    assert "Basil drinks a lot." in chat.tokenizer.decode(kept[0].input_ids)


# --- answers that were cut off, and empty ones ---


@pytest.mark.parametrize("name", [name for name in ANSWERS if not isinstance(ANSWERS[name], str)])
def test_an_answer_that_was_cut_off_ends_with_its_text(name: str) -> None:
    """What the template writes after an answer is not trained, be it an end token or not (Cohere's <|END_RESPONSE|>)."""
    chat = load(name)
    prompt, finished = chat.encode_completion([ASK], "Feed it daily.")
    same, cut_off = chat.encode_completion([ASK], "Feed it daily.", finished=False)
    assert same == prompt
    assert chat.tokenizer.decode(cut_off).endswith("Feed it daily.")
    assert finished[: len(cut_off)] == cut_off


@pytest.mark.parametrize("name", ["smollm2", "gemma3", "qwen3"])
def test_no_answer_is_learned_that_says_nothing(name: str) -> None:
    empty = says("assistant", " \n")
    with pytest.raises(TiebreakError, match="an answer is empty"):
        trained(load(name), (ASK, empty, NEXT, SECOND))
    assert trained(load(name), (ASK, empty, NEXT, SECOND), last_only=True) == [[ANSWERS[name][0][-1]]]
    silent = empty.model_copy(update={"weight": 0})
    assert trained(load(name), (ASK, silent, NEXT, SECOND)) == [[ANSWERS[name][0][-1]]]
    _, completion = load(name).encode_completion([ASK], "")  # what a policy drew is scored, whatever it is
    assert completion


def test_a_thought_without_an_answer_is_not_learned() -> None:
    with pytest.raises(TiebreakError, match="an answer is empty"):
        trained(load("qwen3"), (ASK, says("assistant", "<think>\nBasil drinks a lot.\n</think>\n\n")))
