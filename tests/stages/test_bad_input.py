"""Bad input through the real command line: what, where and the next step in one message; nothing written or lost."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import REPOSITORY, read_rows, run_here, snapshot, write_config, write_rows

from tiebreak.command.cli import main

ASK = [{"role": "user", "content": "Why do the roots turn brown?"}]
GOOD = [{"role": "assistant", "content": "Cool the water to 18 degrees today."}]
BAD = [{"role": "assistant", "content": "It depends."}]
QUIET = ("--tracking.mode", "disabled")


def write_lines(path: Path, *lines: object) -> Path:
    """A JSON Lines file, broken lines (given as text) among the rows."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def refused(status: int, stderr: str, *parts: str, wanted_status: int = 1) -> str:
    """Check that a command ended as it should; returns its message."""
    assert "Traceback" not in stderr
    _, found, message = stderr.rpartition("error: ")
    assert found, f"no message: {stderr[-2000:]}"
    assert status == wanted_status, message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    return message


def fail(*words: str | Path, parts: tuple[str, ...], wanted_status: int = 1) -> str:
    """`tiebreak …` in this process, which must be refused."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stdout.getvalue() == ""
    return refused(int(stopped.value.code or 0), stderr.getvalue(), *parts, wanted_status=wanted_status)


def carry_out(*words: object) -> None:
    """`tiebreak …` in this process, for what must end well: torch is imported here already."""
    main([str(word) for word in words])


def made_nothing(output: Path) -> bool:
    """Whether an output folder holds no result: no manifest and nothing in final/."""
    return not (output / "manifest.json").exists() and not any(path.is_file() for path in output.glob("final/**/*"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


# --- configuration ---------------------------------------------------------------------------------------------------


def test_unknown_and_mistyped_keys_are_listed_together(tmp_path: Path, output: Path) -> None:
    config = write_config(
        tmp_path / "label.yaml", output=output, pairs="pairs.jsonl", overlapp=3, seed="one", simulate={"error_rate": 2}
    )
    fail(
        "label", "--config", config, "--simulate", "true", "--por", "7000",
        parts=(
            f"{config}: 4 errors",
            "overlapp: no such key; did you mean overlap?",
            "seed: input should be a valid integer",
            "simulate.error_rate: input should be less than or equal to 1, not 2",
            "--por: no such key; did you mean --port?",
            "tiebreak label --help",
        ),
        wanted_status=2,
    )  # fmt: skip
    assert not output.exists()


def test_a_missing_configuration_names_its_neighbour(tmp_path: Path) -> None:
    write_config(tmp_path / "prepare.yaml", output="out")
    fail(
        "prepare", "--config", tmp_path / "prepair.yaml",
        parts=("no such configuration file", "prepair.yaml", f"is it {tmp_path / 'prepare.yaml'}?"),
        wanted_status=2,
    )  # fmt: skip


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_missing_file_of_data(tmp_path: Path, output: Path) -> None:
    fail(
        "prepare", "--output", output, "--prompts", tmp_path / "gone.jsonl",
        parts=(str(tmp_path / "gone.jsonl"), "no such input", "run the stage that writes it first, or fix the path"),
    )  # fmt: skip
    assert not output.exists()


def test_every_broken_line_of_every_file_is_listed(tmp_path: Path, output: Path) -> None:
    prompts = write_lines(
        tmp_path / "p.jsonl",
        {"prompt": ASK},
        '{"prompt": "cut',
        '{"prompt": NaN}',
        {"prompt": None},
        {"prompt": [{"role": "user", "content": None}]},
        ["not", "an", "object"],
    )
    whole_lines = write_lines(tmp_path / "q.jsonl", {"prompt": None}, '{"prompt": NaN}', {"prompt": "  "})
    shown = write_lines(
        tmp_path / "d.jsonl",
        {"prompt": ASK, "completion": GOOD},
        {"prompt": ASK, "completion": " "},
        {"prompt": ASK, "completion": None},
        {"prompt": ASK},
    )
    message = fail(
        "prepare", "--output", output, "--prompts", prompts, whole_lines, "--demonstrations", shown,
        parts=(
            "nothing was written",
            f"{prompts}:2: not JSON (Unterminated string starting at column 12)",
            f"{prompts}:6: a list, not an object",
            f"{whole_lines}:1: column 'prompt' is empty in this row",
            f"{whole_lines}:2: column 'prompt': neither a string nor a list of messages",
            f"{whole_lines}:3: the prompt is empty",
            f"{shown}:2: the completion is empty",
            f"{shown}:3: column 'completion' is empty in this row",
            f"{shown}:4: no column 'completion' or 'messages'",
        ),
    )  # fmt: skip
    assert message.splitlines()[0].startswith("11 errors in the data")
    assert made_nothing(output)


def test_the_fixed_data_goes_through_in_the_same_folder(tmp_path: Path, output: Path, tiny_model: Path) -> None:
    data = write_lines(tmp_path / "p.jsonl", {"prompt": "Why do roots turn brown in summer?"}, {"prompt": ""})
    words = ("prepare", "--output", output, "--prompts", data, "--policy", tiny_model)
    fail(*words, parts=(f"{data}:2: the prompt is empty",))
    write_lines(data, {"prompt": "Why do roots turn brown in summer?"})
    carry_out(*words)
    assert len(read_rows(output / "final" / "prompts.jsonl")) == 1


def test_a_pair_whose_completions_are_the_same(tmp_path: Path, output: Path) -> None:
    def pair(*texts: str) -> dict[str, Any]:
        completions = [{"id": f"c{n}", "text": text, "policy": "p"} for n, text in enumerate(texts)]
        return {"id": "pair-1", "prompt_id": "prompt-1", "messages": ASK, "completions": completions}

    pairs = write_lines(tmp_path / "pairs.jsonl", pair("a", "b"), pair("a", " a"), pair("a", ""), pair("a"))
    fail(
        "label", "--output", output, "--pairs", pairs, "--simulate", "true",
        parts=(
            f"{pairs}: 3 of 4 rows contain no pair",
            f"{pairs}:2: two completions of the pair are the same",
            f"{pairs}:3: a completion of the pair is empty",
            f"{pairs}:4: a pair needs two or more completions",
        ),
    )  # fmt: skip
    assert not output.exists()


# --- folders ---------------------------------------------------------------------------------------------------------


def test_an_unfinished_run_is_no_input(tmp_path: Path, output: Path) -> None:
    cut_off = tmp_path / "sample"
    (cut_off / "final").mkdir(parents=True)
    write_lines(cut_off / "run.json", {"stage": "sample", "fingerprint": "x", "inputs": {}})
    write_lines(cut_off / "final" / "pairs.jsonl", "half a ro")
    before = snapshot(cut_off)
    fail(
        "label", "--output", output, "--pairs", cut_off, "--simulate", "true",
        parts=(f"{cut_off} is not finished", "manifest.json", "run 'tiebreak sample --config", "first"),
    )  # fmt: skip
    assert not output.exists()
    assert snapshot(cut_off) == before


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, raw_data: Path
) -> tuple[Path, tuple[Any, ...]]:
    """A finished prepare run, and the words that made it."""
    folder = tmp_path_factory.mktemp("finished") / "prepare"
    words = ("prepare", "--output", folder, "--prompts", raw_data / "prompts.jsonl", "--policy", tiny_model)
    carry_out(*words)
    return folder, words


def test_an_output_folder_of_another_configuration_is_left_as_it_is(finished: tuple[Path, tuple[Any, ...]]) -> None:
    folder, words = finished
    before = snapshot(folder)
    fail(
        *words, "--near-duplicate", "0.5", "--split.seed", "4",
        parts=(
            f"{folder} holds another run, and nothing is overwritten",
            "near_duplicate (0.8 there, 0.5 now), split.seed (0 there, 4 now)",
            "--output",
        ),
    )  # fmt: skip
    assert snapshot(folder) == before
    assert "nothing to do" in run_here(*words)[1]
    assert snapshot(folder) == before


def test_an_output_that_is_a_file_or_lies_under_one(tmp_path: Path, raw_data: Path) -> None:
    file = write_lines(tmp_path / "notes.txt", "mine")
    for output in (file, file / "out"):
        fail("prepare", "--output", output, "--prompts", raw_data / "prompts.jsonl", parts=(str(file), "--output"))
    assert file.read_text() == "mine\n"


# --- the machine -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tiebreak-test", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("no right to mount a small file system; the limit on file sizes stands in for it below")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_no_space_left_on_the_device(small_disk: Path, tmp_path: Path, tiny_model: Path) -> None:
    data = write_rows(tmp_path / "p.jsonl", [{"prompt": f"Question {n}: {n * 7919} {'x' * 200}?"} for n in range(300)])
    words = ("prepare", "--output", small_disk / "out", "--prompts", data, "--policy", tiny_model)
    words = (*words, "--near-duplicate", "1")
    fail(*words, parts=("no space left on the device", "free some space", "run the same command again"))
    assert made_nothing(small_disk / "out")
    assert not [path for path in small_disk.rglob(".*tmp*") if path.is_file()]
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    carry_out(*words)
    assert len(read_rows(small_disk / "out" / "final" / "prompts.jsonl")) == 300


def has_gpu() -> bool:
    import torch

    return torch.accelerator.is_available()


def test_launches_on_gpus_where_there_is_none(output: Path, raw_data: Path) -> None:
    if has_gpu():
        pytest.skip("this machine has a GPU")
    words = ("dpo", "--output", output, "--policy", "x", "--preferences", raw_data / "preferences.jsonl")
    fail(
        *words, "--accelerate", "single_gpu",
        parts=("single_gpu.yaml needs GPUs, and this machine has none", "--accelerate cpu or cpu_zero1"),
    )  # fmt: skip
    assert not output.exists()


# --- what training stages refuse -------------------------------------------------------------------------------------

RUNNER = """
import contextlib, io, json, resource, sys, traceback
from tiebreak.command.cli import main
for words in json.loads(sys.argv[1]):
    if isinstance(words, int):  # from here on no file may grow beyond so many bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (words, words))
        continue
    status, errors = 0, io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(words)
        except SystemExit as stopped:
            status = stopped.code
        except BaseException:
            traceback.print_exc()
    print(json.dumps([status, errors.getvalue()]), flush=True)
"""
"""The command line's own `main`, command after command in one process: importing torch and TRL takes longest."""

FILE_LIMIT = 200_000


@dataclass(frozen=True)
class Case:
    """A command that must be refused, and what its message must say."""

    words: tuple[str | Path, ...]
    parts: tuple[str, ...]
    status: int = 1


def build_reward_model(base: Path, folder: Path) -> Path:
    """A finished reward run on `base`, its head untrained."""
    from tiebreak.config import AdapterConfig, StageConfig, TrackingConfig, TrainingConfig
    from tiebreak.models.adapters.adapter import Adapter
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_reward_model
    from tiebreak.models.probe import probe_values
    from tiebreak.models.probe import write_probe as keep_probe
    from tiebreak.models.save import save_adapter
    from tiebreak.models.tokenizers import load_chat
    from tiebreak.runs.run import start_run

    run = start_run(StageConfig(output=str(folder), tracking=TrackingConfig(mode="disabled")), "reward", {})
    source, adapter = find_model(str(base)), AdapterConfig(r=2)
    chat = load_chat(source)
    model = load_reward_model(source, TrainingConfig(precision="float32"), adapter, chat.tokenizer)
    save_adapter(run.final, model, Adapter(model).state(), chat, source, "reward", adapter)
    keep_probe(run.final, [5, 6, 7], probe_values(model, [5, 6, 7]), model)
    run.finish()
    return folder


def build_other_tokenizer(base: Path, folder: Path) -> Path:
    """A copy of a model whose tokenizer reads one word differently."""
    from transformers import AutoTokenizer

    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["hydroponics"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, raw_data: Path) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("cases")
    judge, stranger = (
        build_reward_model(tiny_model, folder / "judge"),
        build_other_tokenizer(tiny_model, folder / "other"),
    )
    judged = write_config(
        folder / "judged.yaml", policies={"sft": stranger}, reward_model=judge, prompts=raw_data / "prompts.jsonl"
    )
    row = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
    other = {**row, "prompt": "How cold may it get at night?"}
    nobody = write_lines(folder / "nobody.jsonl", row, {**other, "raters": []})
    same = write_lines(folder / "same.jsonl", row, {**other, "rejected": GOOD}, {**other, "chosen": " "})
    leaked = write_lines(folder / "leaked.jsonl", {**row, "split": "train"}, other, {**row, "split": "validation"})
    ended = write_lines(folder / "ended.jsonl", *[{"prompt": ASK, "completion": "Add iron now.<|im_end|>"}] * 3)
    long = write_lines(folder / "long.jsonl", {"prompt": "Short?"}, {"prompt": "Long? " * 60})
    shown, prompts = raw_data / "demonstrations.jsonl", ("--prompts", raw_data / "prompts.jsonl")
    preferences = raw_data / "preferences.jsonl"

    def words(stage: str, name: str, *rest: str | Path) -> tuple[str | Path, ...]:
        return (stage, "--output", folder / "out" / name, *QUIET, *rest)

    policy = ("--policy", tiny_model)
    return {
        "no rater": Case(
            words("reward", "no rater", *policy, "--preferences", nobody),
            (f"{nobody}:2: raters: this preference has no raters", "drop the row, or leave the column out"),
        ),
        "the same text": Case(
            words("dpo", "the same text", *policy, "--preferences", same),
            (f"{same}:2: chosen and rejected are the same", f"{same}:3: chosen is empty"),
        ),
        "a prompt in two splits": Case(
            words("dpo", "a prompt in two splits", *policy, "--preferences", leaked),
            ("1 prompt in two splits, so held-out figures would be wrong", f"train at {leaked}:1, validation at"),
        ),
        "another tokenizer": Case(
            words("evaluate", "another tokenizer", "--config", judged, "--split", "train"),
            (f"policy sft and reward model {judge}: their tokenizer differ",),
        ),
        "a policy as reward model": Case(
            words("ppo", "a policy as reward model", *policy, "--reward-model", tiny_model, *prompts),
            (f"{tiny_model} is a base model", "finished reward run"),
        ),
        "a reward model as policy": Case(
            words("dpo", "a reward model as policy", "--policy", judge, "--preferences", preferences),
            (f"{judge} is a reward model, but a policy model is needed here",),
        ),
        "two ends of sequence": Case(
            words("sft", "two ends of sequence", *policy, "--demonstrations", ended),
            ("two end-of-sequence tokens ('<|im_end|>')", "remove it from the data", "'Add iron now.<|im_end|>'"),
        ),
        "all too long": Case(
            words("sft", "all too long", *policy, "--demonstrations", shown, "--training.max-length-tokens", "9"),
            ("longer than training.max_length_tokens (9; the shortest has", "raise it, or shorten them"),
        ),
        "float16 on the CPU": Case(
            words("sft", "float16 on the CPU", *policy, "--demonstrations", shown, "--training.precision", "float16"),
            ("training.precision: float16 needs a GPU", "use auto, float32 or bfloat16"),
        ),
        "flash attention on the CPU": Case(
            words("sample", "flash attention", *policy, *prompts, "--training.attention", "flash_attention_2"),
            ("training.attention: flash_attention_2 needs a GPU", "use auto, sdpa or eager"),
        ),
        "a prompt too long to sample from": Case(
            words("sample", "a prompt too long", *policy, "--prompts", long, "--max-prompt-tokens", "60"),
            ("1 prompt longer than max_prompt_tokens (60)", "tokens", "raise it, or drop them in prepare"),
        ),
        "an end of sequence in prepare": Case(
            words("prepare", "an end of sequence in prepare", *policy, "--demonstrations", ended),
            ("1 row cannot be rendered", f"{ended}:1: two end-of-sequence tokens ('<|im_end|>')", "remove it"),
        ),
        "a full disk": Case(
            words(
                "sft", "a full disk", *policy, "--demonstrations", shown, "--training.save-steps", "1",
                "--training.max-steps", "3", "--training.per-device-batch-size", "2", "--adapter.r", "2",
            ),
            ("no space left on the device", "run the same command again", "complete checkpoints are kept"),
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def answers(cases: dict[str, Case]) -> dict[str, tuple[int, str]]:
    """(exit status, standard error) of every case."""
    script: list[Any] = [list(map(str, case.words)) for case in cases.values()]
    assert list(cases)[-1] == "a full disk"
    script.insert(len(script) - 1, FILE_LIMIT)
    result = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(script)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return dict(zip(cases, map(tuple, lines), strict=True))


CASES = (
    "no rater", "the same text", "a prompt in two splits", "another tokenizer", "a policy as reward model",
    "a reward model as policy", "two ends of sequence", "all too long", "float16 on the CPU",
    "flash attention on the CPU", "a prompt too long to sample from", "an end of sequence in prepare", "a full disk",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_training_stages_refuse(name: str, cases: dict[str, Case], answers: dict[str, tuple[int, str]]) -> None:
    if name.endswith("on the CPU") and has_gpu():
        pytest.skip("this machine has a GPU")
    case, (status, stderr) = cases[name], answers[name]
    refused(status, stderr, *case.parts, wanted_status=case.status)
    output = Path(case.words[2])
    assert made_nothing(output)
    assert not list(output.glob("checkpoints/*/COMPLETE"))


def test_every_case_is_checked(cases: dict[str, Case]) -> None:
    assert tuple(cases) == CASES
