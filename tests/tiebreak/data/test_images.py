"""Images in messages: one record for every form, ids of text as before, and each stage's refusal."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import TINY_TRAINING, read_rows, run_here, write_config, write_rows
from trl.data_utils import prepare_multimodal_messages

from tiebreak.content import ImagePart
from tiebreak.data.images import place_images
from tiebreak.data.pairs import read_pairs
from tiebreak.data.reading import Rules, read_demonstrations, read_preferences, read_prompts
from tiebreak.errors import DataError, HandoffError
from tiebreak.messages import Message, Messages, assistant, content_id, prompt_id, split_key, text_of
from tiebreak.models.find import find_model
from tiebreak.models.tokenizers import load_chat
from tiebreak.records import Preference

PNG = b"\x89PNG\r\n\x1a\n picture"
PNG_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
CAT = {"type": "image", "image": "cat.png"}
WHAT = {"type": "text", "text": "What is on the mat?"}
ANSWER = {"role": "assistant", "content": "A cat."}
HELD_OUT = Rules(validation_share=0.0)


def of(*content: Any, role: str = "user") -> Message:
    return Message.model_validate({"role": role, "content": list(content)})


# --- records -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        CAT,
        {"type": "image", "image": "cat.png", "text": None, "image_url": None},  # as Arrow fills it in
        {"type": "image", "image": {"path": "cat.png", "bytes": None}},
        {"type": "image_url", "image_url": {"url": "cat.png"}},
        {"type": "image_url", "image_url": "cat.png"},
        {"type": "input_image", "image_url": "cat.png"},
    ],
)
def test_every_form_of_an_image_is_one_record_written_as_trl_does(part: dict[str, Any]) -> None:
    message = of(part, WHAT)
    assert message == of(CAT, WHAT)
    assert message.model_dump(mode="json") == {"role": "user", "content": [CAT, WHAT]}
    assert prompt_id((message,)) == prompt_id((of(CAT, WHAT),))
    assert (message.text, text_of((message,))) == ("What is on the mat?", "[image cat.png]What is on the mat?")


def test_bytes_of_an_image_are_its_content() -> None:
    message = of({"type": "image", "image": {"path": "cat.png", "bytes": PNG}})
    assert message == of({"type": "image_url", "image_url": {"url": PNG_URL}})
    other = of({"type": "image", "image": {"path": "cat.png", "bytes": PNG + b"!"}})
    assert text_of((message,)).startswith("[image image/png sha256:")
    assert text_of((message,)) != text_of((other,))  # compared as text, two images are two


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
text_parts = texts.map(lambda text: {"type": "text", "text": text})
image_parts = st.sampled_from([CAT, {"type": "image"}, {"type": "image_url", "image_url": {"url": PNG_URL}}])


@settings(deadline=None)
@given(st.lists(st.one_of(text_parts, image_parts), max_size=5))
def test_a_message_written_is_the_message_read(content: list[dict[str, Any]]) -> None:
    message = of(*content)
    again = Message.model_validate_json(message.model_dump_json())
    assert again == message
    assert hash(again) == hash(message)
    assert message.text == "".join(part.get("text", "") for part in content)
    assert len(message.images) == sum(part["type"] != "text" for part in content)
    assert message.is_empty == (not message.text.strip() and not message.images)
    if not message.images:  # text alone is a string, and has the id that it had before
        plain = Message(role="user", content=message.text)
        assert (message, prompt_id((message,)), split_key((message,))) == (
            plain,
            prompt_id((plain,)),
            split_key((plain,)),
        )
        assert message.model_dump(mode="json") == {"role": "user", "content": message.text}
    else:
        spaced = message.map_text(lambda text: f" {text.strip()}\r\n")
        assert split_key((spaced,)) == split_key((message,))
        assert not message.is_plain


def test_ids_and_files_of_text_are_those_of_before() -> None:
    """Values from before messages could have images."""
    ask = of({"type": "text", "text": "How cold"}, {"type": "text", "text": " is Bonn?"})
    brief = Message(role="system", content="Be brief.\r\n")
    thought = Message(role="assistant", content="It is 4 °C.", reasoning_content="Hm.")
    turns = (brief, ask, thought, ask)
    assert prompt_id((brief, ask)) == "prompt-fbb7856f4cca0ce6"
    assert split_key((brief, ask)) == "prompt-7a835e74a08cff99"
    assert prompt_id(turns) == "prompt-1ad4a9209d3db48e"
    assert content_id("x", (brief, ask, thought)) == "x-3802b0ac665ede29"
    written = Preference(prompt=(ask,), chosen=(thought,), rejected=assistant("no")).model_dump_json()
    assert written.startswith(
        '{"prompt":[{"role":"user","content":"How cold is Bonn?"}],"chosen":[{"role":"assistant","content":"It is 4 °C.",'
        '"reasoning_content":"Hm."}],"rejected":[{"role":"assistant","content":"no"}],"strength":null,'
    )


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        ({"type": "input_audio", "input_audio": {"data": "x"}}, "of type 'input_audio': a message has text and images"),
        ({"type": "video", "video": "x.mp4"}, "of type 'video': a message has text and images"),
        ({"type": "image", "url": "x.png"}, "of type 'image' with 'url': write"),
        ({"type": "image", "image": ""}, "of type 'image', and its image is empty"),
        ({"type": "image", "image": 3}, "of type 'image', and its image is a int"),
        ({"type": "image", "image": {"size": 3}}, "of type 'image', and its image is an object with 'size'"),
        ({"type": "image_url"}, "of type 'image_url' without image_url"),
        ({"type": "image_url", "image_url": {"url": "x", "detail": "huge"}}, "with detail 'huge'"),
    ],
)
def test_other_parts_are_refused_by_name(part: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=r"content\[1\] is a part ") as caught:
        of(WHAT, part)
    assert fault in str(caught.value)


# --- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "images"),
    [
        ([{"role": "user", "content": "What?"}], ["a.png"]),
        ([{"role": "system", "content": "Look."}, {"role": "user", "content": "What?"}], ["a.png", "b.png"]),
        ([{"role": "user", "content": [{"type": "image"}, WHAT, {"type": "image"}]}], ["a.png", "b.png"]),
        (
            [{"role": "user", "content": [{"type": "image"}, CAT]}, ANSWER, {"role": "user", "content": [WHAT]}],
            ["a.png"],
        ),
        ([{"role": "user", "content": [WHAT]}, ANSWER, {"role": "user", "content": [{"type": "image"}]}], ["a.png"]),
        ([{"role": "user", "content": "What?"}], []),
    ],
)
def test_a_column_of_images_is_placed_as_trl_places_it(messages: list[dict[str, Any]], images: list[str]) -> None:
    ours = tuple(Message.model_validate(message) for message in messages)
    (placed,) = place_images([ImagePart(image=one) for one in images], ours)
    assert placed == tuple(map(Message.model_validate, prepare_multimodal_messages(messages, images)))


def test_rows_of_every_kind_have_their_images(tmp_path: Path) -> None:
    ask, other = [{"role": "user", "content": [{"type": "image"}, WHAT]}], {"role": "assistant", "content": "A dog."}
    expected = (of(CAT, WHAT),)
    row: dict[str, Any] = {"prompt": ask, "completion": [ANSWER], "images": ["cat.png"]}
    (shown,) = read_demonstrations(str(write_rows(tmp_path / "d.jsonl", [row])), HELD_OUT)
    assert (shown.prompt.messages, shown.completion) == (expected, "A cat.")
    implicit = {"chosen": [*ask, ANSWER], "rejected": [*ask, other], "images": ["cat.png"]}
    explicit = {"prompt": ask, "chosen": [ANSWER], "rejected": [other], "image": "cat.png"}
    for number, row in enumerate((implicit, explicit)):
        (pair,) = read_preferences(str(write_rows(tmp_path / f"{number}.jsonl", [row])), HELD_OUT)
        assert (pair.prompt, pair.chosen_text, pair.rejected_text) == (expected, "A cat.", "A dog.")
    rows = [{"prompt": "What is on the mat?", "images": [{"bytes": None, "path": "cat.png"}]}, {"prompt": "Hello?"}]
    pictured, plain = read_prompts(str(write_rows(tmp_path / "p.jsonl", rows)), ["train"], HELD_OUT)
    assert (pictured.messages, plain.messages[0].content) == (expected, "Hello?")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": [{"role": "user", "content": [{"type": "image"}, WHAT]}], "images": ["a", "b"]},
         "2 images for 1 image part: give one for each"),
        ({"prompt": "What?", "images": [{"size": 3}]}, "column 'images': an image in it is an object with 'size', not a"),
        ({"prompt": [{"role": "system", "content": "x"}, {"role": "tool", "content": "y"}], "images": ["a"]},
         "the row has images, but no user message to put them in"),
    ],
)  # fmt: skip
def test_images_without_their_place_are_refused(row: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_prompts(str(write_rows(tmp_path / "rows.jsonl", [row])), ["train"])
    assert fault in str(caught.value)


# --- stages ------------------------------------------------------------------------------------------------------------

ROW: dict[str, Any] = {"role": "user", "content": [CAT, WHAT]}
ROWS: dict[str, dict[str, Any]] = {
    "prompts": {"prompt": [ROW]},
    "demonstrations": {"messages": [ROW, ANSWER]},
    "preferences": {"prompt": [ROW], "chosen": "A cat.", "rejected": "A dog."},
    "answers": {"prompt": [ROW], "completion": "A cat.", "label": True},
    "pairs": {"prompt": [ROW], "response_a": "A cat.", "response_b": "A dog."},
}
TEXT_ROWS: dict[str, dict[str, Any]] = {
    "prompts": {"prompt": "Hello?"},
    "demonstrations": {"messages": [{"role": "user", "content": "Hello?"}, ANSWER]},
    "preferences": {"prompt": "Hello?", "chosen": "Hi.", "rejected": "No."},
    "answers": {"prompt": "Hello?", "completion": "No.", "label": False},
    "pairs": {"prompt": "Hello?", "response_a": "Hi.", "response_b": "No."},
}
REFUSAL = "[image cat.png] in a message of the user: tiebreak {} takes only text; remove the row or the part"


@pytest.mark.parametrize(
    ("stage", "key", "further"),
    [
        ("prepare", "prompts", {}),
        ("prepare", "demonstrations", {}),
        ("sft", "demonstrations", {"training": TINY_TRAINING}),
        ("sample", "prompts", {}),
        ("label", "pairs", {"simulate": {"enabled": True}}),
        ("label import", "pairs", {}),
        ("reward", "preferences", {"training": TINY_TRAINING}),
        ("reward report", "preferences", {"reward_model": "runs/reward"}),
        ("dpo", "preferences", {"training": TINY_TRAINING}),
        ("dpo", "preferences", {"algorithm": "kto", "training": TINY_TRAINING}),
        ("ppo", "prompts", {"training": TINY_TRAINING, "reward_model": "runs/reward"}),
        ("evaluate", "prompts", {"policies": {"base": "runs/sft"}, "baseline": "base"}),
    ],
)
def test_each_stage_refuses_the_row_by_its_name(
    stage: str, key: str, further: dict[str, Any], finished_recipe: Path, tmp_path: Path
) -> None:
    kind = "answers" if further.get("algorithm") == "kto" else key
    source = write_rows(tmp_path / "rows.jsonl", [TEXT_ROWS[kind], ROWS[kind]])
    values = {
        name: str(finished_recipe / one) if str(one).startswith("runs/") else one for name, one in further.items()
    }
    if stage == "label import":
        words = ["--pairs", source, "--store", f"sqlite:///{tmp_path}/labels.sqlite"]
    else:
        if stage in ("sft", "sample", "reward", "dpo", "ppo", "prepare"):
            values["policy"] = str(finished_recipe / "runs" / "sft")
        if stage == "evaluate":
            values["policies"] = {"base": str(finished_recipe / "runs" / "sft")}
        values[key] = [str(source)] if stage == "prepare" else str(source)
        values["tracking"] = {"mode": "disabled"}
        words = ["--config", write_config(tmp_path / "stage.yaml", output=tmp_path / "out", **values)]
    status, message = run_here(*stage.split(), *words)
    assert status == 1, message
    refusal = REFUSAL.format(stage)
    if stage == "label":
        refusal = refusal.replace("text; ", "text; set media to the folder of the files, or ")
    assert f"{source}:2: {refusal}" in message
    assert f"{source}:1" not in message
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_rows_with_images_can_be_dropped(tmp_path: Path, tiny_model: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [ROWS["prompts"], {"prompt": "Hello?"}])
    config = {
        "prompts": [str(source)],
        "on_bad_row": "drop",
        "policy": str(tiny_model),
        "tracking": {"mode": "disabled"},
    }
    status, message = run_here(
        "prepare", "--config", write_config(tmp_path / "p.yaml", output=tmp_path / "out", **config)
    )
    assert status == 0, message
    assert [row["messages"][0]["content"] for row in read_rows(tmp_path / "out/final/prompts.jsonl")] == ["Hello?"]


def test_records_of_a_run_are_refused_too(tmp_path: Path) -> None:
    final = tmp_path / "run" / "final"
    write_rows(final / "prompts.jsonl", [{"id": "p", "messages": [ROW]}])
    (tmp_path / "run" / "manifest.json").write_text("{}")
    (read,) = read_prompts(str(tmp_path / "run"), ["train"])
    assert read.messages == (of(CAT, WHAT),)
    with pytest.raises(DataError, match="row 1: ") as caught:
        read_prompts(str(tmp_path / "run"), ["train"], Rules(stage="sample"))
    assert REFUSAL.format("sample") in str(caught.value)
    pair = {"id": "x", "prompt_id": "p", "messages": [ROW], "completions": [{"id": n, "text": n} for n in "ab"]}
    write_rows(final / "pairs.jsonl", [pair])
    with pytest.raises(DataError, match="tiebreak label takes only text"):
        read_pairs(str(tmp_path / "run"))


def test_a_template_is_never_given_an_image(tiny_model: Path) -> None:
    """The last guard, for whoever calls it."""
    chat = load_chat(find_model(str(tiny_model)))
    ask: Messages = (of(CAT, WHAT),)
    drawn = of({"type": "text", "text": "<think>x</think>"}, CAT, role="assistant")
    for encode in (
        lambda: chat.encode_prompt(ask),
        lambda: chat.encode_side(ask, assistant("A cat.")),
        lambda: chat.encode_conversation((Message(role="user", content="Draw."), drawn)),
    ):
        with pytest.raises(HandoffError, match=r"image cat\.png"):
            encode()
