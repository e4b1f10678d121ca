"""One splitting rule for every stage: named splits are kept, the rest is held out by prompt, no prompt crosses."""

from __future__ import annotations

import hashlib
import math
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import TINY_TRAINING, run_here, write_config, write_rows
from toy_stage import TOY

from evaluation.configuration import EvaluateConfig
from evaluation.trained_on import leave_out_trained_on
from preference.configuration import PPOConfig
from preference.ppo.train import PPO
from sft.configuration import PrepareConfig, SFTConfig
from sft.duplicates import compare
from sft.reading import read_sources
from sft.store import Store
from sft.train import SFT
from tiebreak.data.reading import Rules, read_demonstrations, read_preferences, read_prompts
from tiebreak.data.splits import assign, is_held_out, partition, split_of, variant_of
from tiebreak.errors import DataError
from tiebreak.files import write_jsonl
from tiebreak.messages import Message, prompt_id
from tiebreak.runs.run import read_manifest
from tiebreak.stages import STAGES

EVERY = ["train", "validation", "test"]


def identity(text: str) -> str:
    return prompt_id([Message(role="user", content=text)])


def is_in_hash_share(text: str, share: float) -> bool:
    """The rule of the module, computed here again: the first 8 bytes of sha256("0:ID") as a fraction."""
    digest = hashlib.sha256(f"0:{identity(text)}".encode()).hexdigest()
    return int(digest[:16], 16) / 2**64 < share


@pytest.mark.parametrize(
    ("name", "split", "variant"),
    [
        ("train", "train", ""),
        ("train_prefs", "train", "prefs"),
        ("Training", "train", ""),
        ("test_sft", "test", "sft"),
        ("held_out", "test", "out"),
        ("val", "validation", ""),
        ("dev", "validation", ""),
        ("eval", "validation", ""),
        ("validation_gen", "validation", "gen"),
        ("math", None, ""),
        ("trainer", None, ""),
        ("value", None, ""),
        ("0", None, ""),
    ],
)
def test_other_data_sets_names_of_splits(name: str, split: str | None, variant: str) -> None:
    assert split_of(name) == split
    assert variant_of(name) == variant


def test_a_prompt_of_which_one_row_names_a_split_is_in_it_with_all_its_rows() -> None:
    rows: list[Any] = [("f:1", "a", "test"), ("f:2", "a", None), ("f:3", "b", None), ("f:4", "a", "test")]
    assert assign(rows, 0.0) == ["test", "test", "train", "test"]


def test_a_prompt_in_two_splits_is_refused_with_its_rows() -> None:
    rows: list[Any] = [("f:1", "a", "train"), ("f:2", "b", "train"), ("f:3", "a", "validation"), ("f:4", "a", "train")]
    with pytest.raises(DataError, match="1 prompt") as caught:
        assign(rows, 0.1)
    assert caught.value.faults == ["a: train at f:1, validation at f:3"]


def test_unnamed_rows_are_held_out_by_prompt_in_their_share() -> None:
    rows = [(f"f:{n}", f"prompt-{n % 1000}", None) for n in range(2000)]
    splits = assign(rows, 0.2)
    assert splits[:1000] == splits[1000:]
    held_out = splits[:1000].count("validation")
    assert abs(held_out / 1000 - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 1000)  # four standard deviations of a fair draw
    assert assign(rows[::-1], 0.2) == splits[::-1]


def test_a_larger_share_holds_out_what_a_smaller_one_did() -> None:
    small = {n for n in range(500) if is_held_out(str(n), 0.1)}
    large = {n for n in range(500) if is_held_out(str(n), 0.3)}
    assert small < large
    assert not any(is_held_out(str(n), 0.0) for n in range(500))


def test_a_tenth_is_held_out_where_no_stage_says_how_much(tmp_path: Path) -> None:
    texts = [f"Question {n}?" for n in range(100)]
    source = str(write_rows(tmp_path / "rows.jsonl", [{"prompt": text} for text in texts]))
    held_out = {one.id for one in read_prompts(source, ["validation"])}
    assert held_out == {identity(text) for text in texts if is_in_hash_share(text, 0.1)}
    assert 2 < len(held_out) < 20


@pytest.mark.parametrize("named", [0, 1, 45])
def test_every_stage_holds_out_the_same_prompts(tmp_path: Path, named: int) -> None:
    """One file for all stages, in which none, one or half of the rows name a split."""
    texts = [f"Question {n}?" for n in range(90)]
    names = {text: EVERY[n % 3] for n, text in enumerate(texts[:named])}
    rows = [
        {"prompt": text, "completion": "Yes.", "chosen": "Yes.", "rejected": "No."}
        | ({"split": names[text]} if text in names else {})
        for text in texts
    ]
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    expected = {t: names.get(t) or ("validation" if is_in_hash_share(t, 0.3) else "train") for t in texts}
    train = {identity(t) for t in texts if expected[t] == "train"}
    validation = {identity(t) for t in texts if expected[t] == "validation"}
    assert len(validation) > 10
    rules = Rules(validation_share=0.3)

    def stage(config: SFTConfig | PPOConfig) -> Any:
        return SimpleNamespace(config=config, rules=rules)

    def ids(records: list[Any], prompt: Any = lambda one: one.prompt.id) -> set[str]:
        return {prompt(one) for one in records}

    config = SFTConfig(output="x", policy="p", demonstrations=source, validation_share=0.3)
    learned, held_out = SFT.read(stage(config))
    assert (ids(learned), ids(held_out)) == (train, validation)
    ppo = PPOConfig(
        output="x", policy="p", prompts=source, reward_model="r", validation_share=0.3, max_validation_prompts=90
    )
    learned_prompts, held_out_prompts = PPO.read(stage(ppo))
    assert ids(learned_prompts, lambda one: one.id) == train
    assert ids(held_out_prompts, lambda one: one.id) == validation
    better, checked = partition(read_preferences(source, rules), lambda one: one.split)  # of reward and DPO
    assert (ids(better, lambda one: one.prompt_id), ids(checked, lambda one: one.prompt_id)) == (train, validation)
    # of sample and evaluate
    sampled = read_prompts(source, ["train", "validation"], rules)
    assert {one.id: one.split for one in sampled} == {identity(t): expected[t] for t in texts if expected[t] != "test"}
    assert ids(read_prompts(source, ["validation"], rules), lambda one: one.id) == validation
    tested = {identity(t) for t in texts if expected[t] == "test"}
    asked = ids(read_prompts(source, ["test"], rules), lambda one: one.id)
    assert asked == (tested if named else {identity(t) for t in texts})
    # of prepare, which shares the unnamed ones out to the row
    work = Store(tmp_path / "work")
    found = read_sources(PrepareConfig(output="x", prompts=[source], demonstrations=[source]), work).rows
    assert compare(found, work, 0, 1.0).named == {identity(t): split for t, split in names.items()}


@pytest.mark.parametrize("read", [read_demonstrations, read_preferences, lambda s, r: read_prompts(s, ["train"], r)])
def test_every_reader_refuses_a_prompt_in_two_splits(tmp_path: Path, read: Any) -> None:
    row = {"prompt": "Why?", "completion": "Yes.", "chosen": "Yes.", "rejected": "No."}
    other = {**row, "completion": "Sure.", "chosen": "Sure."}
    source = str(write_rows(tmp_path / "rows.jsonl", [{**row, "split": "train"}, {**other, "split": "dev"}]))
    with pytest.raises(DataError, match="in two splits") as caught:
        read(source, Rules())
    assert caught.value.faults == [f"{identity('Why?')}: train at {source}:1, validation at {source}:2"]


def test_files_named_as_splits_stay_apart_and_one_file_under_both_names_is_refused(tmp_path: Path) -> None:
    """As SFT reads them: no row is assigned to a split again."""
    rows = [{"prompt": f"Question {n}?", "completion": "Yes."} for n in range(12)]
    apart, same = tmp_path / "apart", tmp_path / "same"
    for folder, held_out in ((apart, rows[9:]), (same, rows)):
        folder.mkdir()
        write_rows(folder / "train.jsonl", rows[:9] if folder == apart else rows)
        write_rows(folder / "validation.jsonl", held_out)

    def read(folder: Path, splits: str = "") -> list[list[str]]:
        config = SFTConfig(output="x", policy="p", demonstrations=f"{folder}{splits}", validation_share=0.3)
        stage: Any = SimpleNamespace(config=config, rules=Rules(validation_share=0.3))
        return [[one.prompt.messages[0].text for one in part] for part in SFT.read(stage)]

    texts = [row["prompt"] for row in rows]
    assert read(apart) == read(apart, "@train+validation") == [texts[:9], texts[9:]]
    with pytest.raises(DataError, match=r"12 prompts .*in two splits") as caught:
        read(same)
    assert f"train at {same}/train.jsonl:1, validation at {same}/validation.jsonl:1" in caught.value.faults[0]


def test_a_column_named_split_that_holds_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Question {n}?", "split": ["math", "code"][n % 2]} for n in range(6)]
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    assert len(read_prompts(source, ["train"], Rules(validation_share=0.0))) == 6
    assert f"{source}: ignored columns: split (math)" in capsys.readouterr().err
    rows[0]["split"] = "train"
    with pytest.raises(DataError, match=r"3 of 6|5 of 6") as caught:
        read_prompts(str(write_rows(tmp_path / "rows.jsonl", rows)), ["train"])
    assert caught.value.faults[0] == (
        f"{source}:2: split: 'code' is not train, validation or test; columns: {{split: null}} ignores the column"
    )
    ignored = Rules({"split": None}, validation_share=0.0)
    assert len(read_prompts(source, ["train"], ignored)) == 6


def test_data_that_holds_nothing_out_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With advice that trains on no row of the test split."""
    rows = [{"prompt": f"Q {n}?", "completion": "Yes.", "split": "train" if n else "test"} for n in range(6)]
    said = "no row names the validation split, so nothing is held out; "
    read_demonstrations(str(write_rows(tmp_path / "rows.jsonl", rows)))
    assert f"{said}give the training split alone" in capsys.readouterr().err
    read_demonstrations(str(write_rows(tmp_path / "rows.jsonl", rows[1:])))
    assert f"{said}columns: {{split: null}} holds prompts out" in capsys.readouterr().err


def test_every_run_behind_a_policy_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"Question {n}?" for n in range(9)]
    source = str(write_rows(tmp_path / "rows.jsonl", [{"prompt": text} for text in texts]))
    config = EvaluateConfig(output="x", policies={"dpo": "dpo"}, baseline="dpo", prompts=source)
    run: Any = SimpleNamespace(config=config, inputs={"prompts": SimpleNamespace(id="rows")}, stage="evaluate")
    prompts = read_prompts(source, ["test"])
    held_out = write_rows(tmp_path / "prepare" / "final" / "prompts.jsonl", [])
    write_jsonl(held_out, [prompts[0].model_copy(update={"split": "train"}), prompts[1]])
    (tmp_path / "prepare" / "manifest.json").write_text("{}")

    def refusal(*stages: str) -> str:
        manifests = [
            (
                str(tmp_path / stage),
                {"stage": stage, "inputs": {"x": {"id": "other" if stage == "dpo" else "rows"}}, "config": keys[stage]},
            )
            for stage in stages
        ]
        found = SimpleNamespace(folder=tmp_path, stage="dpo")
        monkeypatch.setattr("evaluation.trained_on.find_model", lambda *_, **__: found)
        monkeypatch.setattr("evaluation.trained_on.manifest_chain", lambda *_, **__: manifests)
        try:
            leave_out_trained_on(config, run, prompts)
        except DataError as error:
            return str(error).removeprefix("prompts: ")
        return ""

    keys: dict[str, dict[str, float]] = {"dpo": {}, "sft": {"validation_share": 0.4}, "reward": {}, "prepare": {}}
    assert refusal("dpo") == refusal() == ""
    for stage, share in (("sft", 0.4), ("reward", 0.1)):
        n = sum(not is_in_hash_share(text, share) for text in texts)
        assert refusal("dpo", stage) == (
            f"{n} of 9 of {source} are in the train split of {tmp_path / stage}, from which policy dpo comes: --split "
            f"validation --validation-share {share} takes those that it held out"
        )
    prepared = tmp_path / "prepare"
    assert refusal("dpo", "prepare", "sft") == (
        f"1 of 9 of {source} are in the train split of {prepared}, from which policy dpo comes: --prompts {prepared} takes "
        "those that it held out"
    )


@pytest.mark.parametrize(
    ("stage", "keys", "fresh"),
    [
        ("dpo", {"algorithm": "dpo"}, (1, 2, 3)),
        ("dpo", {"algorithm": "kto"}, (2, 3)),
        ("dpo", {"algorithm": "dpo", "use_edits": True}, (1, 3)),
        ("toy", {}, (1, 2, 3)),
    ],
)
def test_what_a_policy_learned_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, keys: dict[str, Any], fresh: tuple[int, ...]
) -> None:
    """Question 0 has a preference, question 1 two bad answers, and an edited one is preferred at question 2. DPO, or a new
    stage, learns from the first, with use_edits also from the third; KTO from the first two."""
    monkeypatch.setitem(STAGES, TOY.name, TOY)
    label, ask = tmp_path / "label", [[{"role": "user", "content": f"Question {n}?"}] for n in range(4)]
    answer = [{"role": "assistant", "content": "No."}]
    other = [{"role": "assistant", "content": "Yes."}]
    write_rows(
        label / "final" / "preferences.jsonl",
        [{"prompt": ask[0], "chosen": other, "rejected": answer, "split": "train"}],
    )
    rows = [{"prompt": one, "completion": answer, "label": False, "split": "train"} for one in ask[:2]]
    write_rows(label / "final" / "unpaired.jsonl", rows)
    edit = {"prompt": ask[2], "chosen": other, "rejected": answer, "split": "train"}
    write_rows(label / "final" / "edit_preferences.jsonl", [edit])
    (label / "manifest.json").write_text('{"id": "l", "stage": "label"}')
    source = str(write_rows(tmp_path / "asked.jsonl", [{"prompt": f"Question {n}?"} for n in range(4)]))
    config = EvaluateConfig(output="x", policies={"p": "p"}, baseline="p", prompts=source, on_bad_row="drop")
    run: Any = SimpleNamespace(
        config=config, inputs={"prompts": SimpleNamespace(id="asked")}, stage="evaluate", facts={}
    )
    learned = {"id": "l", "kind": "run", "source": str(label)}
    record = {"stage": stage, "inputs": {"preferences": learned}, "config": keys}
    monkeypatch.setattr(
        "evaluation.trained_on.find_model", lambda *_, **__: SimpleNamespace(folder=tmp_path, stage=stage)
    )
    monkeypatch.setattr("evaluation.trained_on.manifest_chain", lambda *_, **__: [(str(tmp_path / stage), record)])
    kept = [one.messages[0].text for one in leave_out_trained_on(config, run, read_prompts(source, ["test"]))]
    assert sorted(kept) == [f"Question {n}?" for n in fresh]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_ppo_never_trains_on_a_held_out_prompt(tmp_path: Path, tiny_model: Path, algorithm: str) -> None:
    """The reward function notes what it is asked about: with no validation prompts, that is what is trained on."""
    (tmp_path / "noting.py").write_text(
        "from pathlib import Path\n"
        "def note(prompts, completions, **_):\n"
        f"    with Path({str(tmp_path / 'seen.txt')!r}).open('a') as file:\n"
        "        file.writelines(prompt[-1]['content'] + '\\n' for prompt in prompts)\n"
        "    return [float(len(one[0]['content'])) for one in completions]\n"
    )
    texts = [f"Question {n}?" for n in range(9)]
    rows = [{"prompt": text} for text in texts]
    rows[4]["split"] = "test"
    config = write_config(
        tmp_path / "ppo.yaml",
        output=tmp_path / "ppo",
        algorithm=algorithm,
        policy=tiny_model,
        prompts=write_rows(tmp_path / "rows.jsonl", rows),
        rewards=[{"function": "noting:note"}],
        validation_share=0.4,
        max_validation_prompts=0,
        episodes_per_rollout=8,
        rollouts=4,
        ppo_epochs=1,
        stop_when_all_cut_off=False,
        sampling={"max_new_tokens": 4},
        training={**TINY_TRAINING, "per_device_batch_size": 4, "save_steps": 50},
        adapter={"r": 2, "alpha": 4},
        tracking={"mode": "disabled"},
    )
    status, err = run_here("ppo", "--config", config)
    assert status == 0, err
    expected = {text for text in texts if text != texts[4] and not is_in_hash_share(text, 0.4)}
    assert 3 <= len(expected) <= 7
    assert set((tmp_path / "seen.txt").read_text().splitlines()) == expected
    assert read_manifest(tmp_path / "ppo")["counts"]["prompts"] == len(expected)


COMPOSED, DECOMPOSED = "Caf\u00e9?", "Cafe\u0301?"


def test_a_prompt_is_one_however_its_characters_are_written(tmp_path: Path) -> None:
    """In NFC and in NFD, in data and in a run: split together, and each trained on as it is written."""
    assert identity(COMPOSED) != identity(DECOMPOSED)
    rows = [{"prompt": text, "chosen": "x", "rejected": "y"} for text in (COMPOSED, DECOMPOSED)]
    read = read_preferences(str(write_rows(tmp_path / "rows.jsonl", rows)), Rules(validation_share=0.5))
    assert [one.prompt[0].content for one in read] == [COMPOSED, DECOMPOSED]
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "manifest.json").write_text("{}")
    write_jsonl(
        tmp_path / "run" / "final" / "preferences.jsonl",
        [one.model_copy(update={"split": None, "prompt_id": ""}) for one in read],
    )
    expected = "validation" if is_in_hash_share(COMPOSED, 0.5) else "train"
    assert is_in_hash_share(DECOMPOSED, 0.5) != is_in_hash_share(COMPOSED, 0.5)  # its own hash would part them
    for found in (read, read_preferences(str(tmp_path / "run"), Rules(validation_share=0.5))):
        assert [(one.split, one.prompt_id) for one in found] == [
            (expected, identity(COMPOSED)),
            (expected, identity(DECOMPOSED)),
        ]
    split = [{**row, "split": name} for row, name in zip(rows, ("train", "test"), strict=True)]
    with pytest.raises(DataError, match="1 prompt in two splits"):
        read_preferences(str(write_rows(tmp_path / "rows.jsonl", split)))
    named = [one.model_copy(update={"split": name}) for one, name in zip(read, ("train", "test"), strict=True)]
    write_jsonl(tmp_path / "run" / "final" / "preferences.jsonl", named)
    with pytest.raises(DataError) as caught:
        read_preferences(str(tmp_path / "run"))
    assert caught.value.faults[0].endswith(f"train at {tmp_path}/run row 1, test at {tmp_path}/run row 2")


def test_evaluate_refuses_what_its_policy_was_trained_on(tmp_path: Path, tiny_model: Path) -> None:
    """One file without splits for both: what training held out is measured, the rest is refused."""
    texts = [f"Question {n}, Mr\u00e9?" for n in range(9)]
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": text, "completion": "Yes."} for text in texts])
    quiet = {"tracking": {"mode": "disabled"}, "sampling": {"max_new_tokens": 2}}
    sft = write_config(
        tmp_path / "sft.yaml",
        output=tmp_path / "sft",
        policy=tiny_model,
        demonstrations=source,
        validation_share=0.4,
        adapter={"r": 2, "alpha": 4},
        training={**TINY_TRAINING, "max_steps": 1},
        **quiet,
    )
    status, err = run_here("sft", "--config", sft)
    assert status == 0, err
    evaluation = write_config(
        tmp_path / "evaluate.yaml",
        output=tmp_path / "evaluate",
        policies={"base": tiny_model, "sft": tmp_path / "sft"},
        prompts=source,
        **quiet,
    )
    trained = [text for text in texts if not is_in_hash_share(text, 0.4)]
    status, err = run_here("evaluate", "--config", evaluation)
    assert status == 1
    assert f"{len(trained)} of 9 of {source} are in the train split of {tmp_path / 'sft'}" in err
    assert "--split validation --validation-share 0.4 takes those that it held out" in err
    words = ("--split", "validation", "--validation-share", "0.4", "--output", tmp_path / "held-out")
    status, err = run_here("evaluate", "--config", evaluation, *words)
    assert status == 0, err

    # the same prompts in another file, one of them with blanks around it, others with e and an accent for é
    decomposed = [unicodedata.normalize("NFD", text) for text in trained]
    others = [{"prompt": f" {text}\n" if n == 0 else text} for n, text in enumerate([*decomposed, "Another question?"])]
    copied = write_rows(tmp_path / "copied.jsonl", others)
    shutil.copytree(tmp_path / "sft" / "final", tmp_path / "elsewhere")
    [checkpoint] = (tmp_path / "sft" / "checkpoints").glob("checkpoint-*")
    to_copied = ("--prompts", copied, "--output", tmp_path / "copied")
    for policy in (tmp_path / "sft", checkpoint):
        status, err = run_here("evaluate", "--config", evaluation, *to_copied, "--policies.sft", policy)
        assert status == 1
        assert (
            f"{len(trained)} of {len(trained) + 1} of {copied} were trained on by {tmp_path / 'sft'}, from which" in err
        )
        assert "leave them out with on_bad_row: drop" in err
    status, err = run_here("evaluate", "--config", evaluation, *to_copied, "--on-bad-row", "drop")
    assert status == 0, err
    measured = read_manifest(tmp_path / "copied")
    assert (measured["counts"]["prompts"], measured["prompts_trained_on"]) == (1, len(trained))
    words = (
        "--policies.sft",
        tmp_path / "elsewhere",
        "--output",
        tmp_path / "unknown",
    )  # nothing tells what it learned
    status, err = run_here("evaluate", "--config", evaluation, "--prompts", copied, *words)
    assert status == 0, err
    assert read_manifest(tmp_path / "held-out")["counts"]["prompts"] == 9 - len(trained)
    words = ("--split", "train", "--validation-share", "0.4", "--output", tmp_path / "trained")
    status, err = run_here("evaluate", "--config", evaluation, *words)  # asked for by name
    assert status == 0, err
    assert read_manifest(tmp_path / "trained")["counts"]["prompts"] == len(trained)
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": text} for text in texts if text not in trained])
    status, err = run_here("evaluate", "--config", evaluation, "--prompts", other, "--output", tmp_path / "unseen")
    assert status == 0, err
