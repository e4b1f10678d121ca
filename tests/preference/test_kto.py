"""KTO: against TRL's own trainer on the same mismatched pairs, closed forms, whole runs, and what is refused."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from small_models import ARCHITECTURES, PAD, build, random_pairs, words
from small_world import World, questions
from support import end_process, read_rows, run_here, run_of, write_rows
from trl import KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from preference.configuration import DPOConfig
from preference.kto import (
    AnswerCollator,
    CheckedKTOTrainer,
    EncodedAnswer,
    build_kto_args,
    mismatched,
    require_balance,
    spares_of,
    to_dataset,
)
from preference.losses import Answers, kto_loss
from tiebreak.config import TrainingConfig
from tiebreak.data.reading import read_answers
from tiebreak.errors import DataError, HandoffError
from tiebreak.runs.run import read_manifest, read_metrics
from tiebreak.training.passes import Passes

TRAINING = TrainingConfig(
    learning_rate=1e-2, max_steps=6, per_device_batch_size=4, warmup_share=0.0, precision="float32"
)


def config(**values: Any) -> DPOConfig:
    return DPOConfig(output="x", policy="x", preferences="x", algorithm="kto", **values)


# --- formulas


def answers(ratio: list[float], good: list[bool], kl: float = 0.0, **settings: float) -> Answers:
    return Answers(torch.tensor(ratio), torch.tensor(good), torch.tensor(kl), **{"beta": 0.5, **settings})


def test_the_loss_by_hand() -> None:
    """β = ½. A good answer of ratio 3 at a KL of 1: 1 − σ(½·2). A bad one of −1: 1 − σ(½·2)."""
    one_less_sigmoid = 1 / (1 + math.exp(1))
    assert kto_loss(answers([3.0], [True], 1.0)).item() == pytest.approx(one_less_sigmoid)
    assert kto_loss(answers([-1.0], [False], 1.0)).item() == pytest.approx(one_less_sigmoid)
    weighted = answers([0.0, 0.0, 0.0], [True, False, False], desirable_weight=2.0, undesirable_weight=0.5)
    assert kto_loss(weighted).item() == pytest.approx((2.0 * 0.5 + 2 * 0.5 * 0.5) / 3)


@pytest.mark.parametrize("prompts", ["abcd", "aabb", "aabbc", "abab", "aabcc", "abcabcab"])
def test_every_prompt_gets_another_ones_answer_and_every_answer_is_used_once(prompts: str) -> None:
    partners = mismatched(prompts)
    assert sorted(partners) == list(range(len(prompts)))
    assert all(prompts[row] != prompts[partner] for row, partner in enumerate(partners))


def test_a_batch_of_one_prompt_gets_answers_from_elsewhere() -> None:
    rows = [EncodedAnswer([2, 3], [4 + n, 1], True).row() for n in range(3)] + [EncodedAnswer([5], [9], False).row()]
    spares = (EncodedAnswer([2, 3], [8, 1], True).row(), EncodedAnswer([6], [7, 7, 1], False).row())
    batch = AnswerCollator(pad_token_id=0, spares=spares)(rows)
    pairs = [
        ids[mask.bool()].tolist() for ids, mask in zip(batch["KL_input_ids"], batch["KL_attention_mask"], strict=True)
    ]
    own = [[*row["prompt_ids"], *row["completion_ids"]] for row in rows]
    assert not [pair for pair in pairs if pair in own]
    assert pairs.count([2, 3, 7, 7, 1]) == 2, "two rows of three find no other prompt in the batch"
    alone = AnswerCollator(pad_token_id=0, spares=spares)(rows[:1])
    assert alone["KL_input_ids"].tolist() == [[2, 3, 7, 7, 1]]


# --- TRL's trainer


def encoded(count: int = 24) -> list[EncodedAnswer]:
    """Answers of several lengths; every third is desirable, and some prompts have both kinds."""
    rows = [(p.prompt, (p.chosen, p.rejected)) for p in random_pairs(count)]
    return [EncodedAnswer(prompt, own[n % 2], n % 3 == 0) for n, (prompt, own) in enumerate(rows)]


class AsTRL(KTOTrainer):
    """TRL's trainer, given token ids and the mismatched answers."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def trainer_of(folder: Path, passes: Passes | None, **settings: Any) -> Any:
    """Ours, or with `passes` None TRL's, on the same rows in the same order."""
    chosen = config(**{"training": TRAINING, "beta": 0.5, **settings})
    rows = encoded()
    data, held_out = to_dataset(rows), to_dataset(rows, spares=spares_of(rows))
    common = {
        "model": build(ARCHITECTURES["llama"]()),
        "args": build_kto_args(chosen, run_of(folder, "dpo", chosen)),
        "processing_class": words(),
    }
    common["args"].save_strategy = "no"
    if passes is not None:
        spares = spares_of(rows) if chosen.loss_type == ["kto"] else ()
        collator = AnswerCollator(pad_token_id=PAD, spares=spares)
        return CheckedKTOTrainer(
            **common, train_dataset=data, eval_dataset=held_out, data_collator=collator, passes=passes
        )
    others = []
    for start in range(0, len(rows), TRAINING.per_device_batch_size):
        batch = rows[start : start + TRAINING.per_device_batch_size]
        others += [batch[partner].answer for partner in mismatched([tuple(row.prompt) for row in batch])]
    return AsTRL(
        **common,
        train_dataset=data.add_column("KL_completion_ids", others),
        eval_dataset=held_out,
        data_collator=DataCollatorForUnpairedPreference(pad_token_id=PAD),
    )


def trained(trainer: Any) -> tuple[list[dict[str, float]], dict[str, float]]:
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == TRAINING.max_steps
    if type(trainer) is AsTRL:  # its KL is a batch's, and its means are over batches
        trainer.args.per_device_eval_batch_size = len(trainer.eval_dataset)
    return rows, trainer.evaluate()


METRICS = ["loss", "kl", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"]


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_it_trains_as_trl_does_in_one_pass_and_in_several(loss: str, tmp_path: Path) -> None:
    settings = {"loss_type": [loss], "desirable_weight": 1.5, "undesirable_weight": 0.8}
    theirs, evaluated = trained(trainer_of(tmp_path / "trl", None, **settings))
    assert max(row["kl"] for row in theirs) > 0.01 or loss != "kto"
    for name, passes in (("padded", Passes(1000, packed=False)), ("packed", Passes(25))):
        trainer = trainer_of(tmp_path / name, passes, **settings)
        steps: list[int] = []
        step = trainer._step
        trainer._step = lambda *args, step=step, steps=steps: (steps.append(1), step(*args))[1]
        ours, own = trained(trainer)
        assert (len(steps) > 8) is (name == "packed")
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            for key in METRICS:
                assert (key in one) is (key in other)
                if key in other:
                    assert one[key] == pytest.approx(other[key], abs=1e-3, rel=1e-3), f"{key} at step {number}"
        for key in METRICS:
            if key != "grad_norm":
                assert own[f"eval_{key}"] == pytest.approx(evaluated[f"eval_{key}"], abs=1e-3, rel=1e-3), key


def test_another_reference_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Passes(1000))
    (matrix,) = [
        p for name, p in trainer.model.named_parameters() if name.endswith("0.self_attn.v_proj.lora_B.ref.weight")
    ]
    with torch.no_grad():
        matrix += 0.05
    with pytest.raises(HandoffError, match=r"the reference is not the policy.*nothing was trained"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_trainer_of_another_loss_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Passes(1000))
    inner = KTOTrainer._compute_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KTOTrainer, "_compute_loss", lambda *args: inner(*args) * 0.9)
        with pytest.raises(HandoffError, match=r"the first loss \(kto\) is .*its formula gives"):
            trainer.train()


# --- whole runs


def write_answers(file: Path, count: int = 16) -> Path:
    """Two answers to each prompt, one labelled true, in TRL's columns."""
    rows = []
    for number, text in enumerate(questions(count)):
        prompt = [{"role": "user", "content": text}]
        for label, answer in ((True, "more feed more"), (False, "less light pot")):
            answer = f"{answer} root" if number % 3 else answer
            rows.append({"prompt": prompt, "completion": [{"role": "assistant", "content": answer}], "label": label})
    return write_rows(file, rows)


def start(world: World, data: Path, output: Path, *flags: str) -> tuple[int, str]:
    return run_here(
        *("dpo", "--algorithm", "kto", "--output", output, "--policy", world.policy, "--preferences", data),
        *("--tracking.mode", "disabled", "--adapter.r", "2", "--adapter.alpha", "4", "--training.save-steps", "1"),
        *("--training.max-length-tokens", "32", "--training.learning-rate", "0.01", "--training.max-steps", "3"),
        *("--training.per-device-batch-size", "4", "--sampling.max-new-tokens", "4", *flags),
    )


def test_three_steps_saved_reloaded_and_resumed(world: World, tmp_path: Path) -> None:
    data, output = write_answers(tmp_path / "rows.jsonl"), tmp_path / "out"
    status, message = start(world, data, output, "--validation-share", "0.2", "--training.eval-steps", "3")
    assert status == 0, message
    assert "KTO rows (prompt, completion, label)" in message
    manifest, rows = read_manifest(output), read_metrics(output)
    assert manifest["probe_difference"] <= 1e-5
    assert manifest["path"] == "packed"
    assert sum(manifest["labels"].values()) == manifest["counts"]["train"]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(0.5, abs=1e-4)
    assert losses[-1] < losses[0]
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert any("eval_rewards/margins" in row for row in rows)
    weights = load_file(output / "final" / "adapter_model.safetensors")
    (output / "manifest.json").unlink()
    shutil.rmtree(output / "final")
    shutil.rmtree(output / "checkpoints" / "checkpoint-3")
    status, message = start(world, data, output, "--validation-share", "0.2", "--training.eval-steps", "3")
    assert (status, "resuming from" in message) == (0, True), message
    resumed = load_file(output / "final" / "adapter_model.safetensors")
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert run_here("inspect", output)[0] == 0


def test_a_step_whose_loss_is_no_number_is_not_taken(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three: its answers are named, the weights after the first are kept, and the command ends as uncut."""
    data, output, uncut = write_answers(tmp_path / "rows.jsonl"), tmp_path / "out", tmp_path / "uncut"
    inner = KTOTrainer._compute_loss

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = inner(self, *args, **kwargs)
        return loss * math.nan if self.state.global_step == 1 else loss

    with monkeypatch.context() as patched:
        patched.setattr(KTOTrainer, "_compute_loss", poisoned)
        status, message = start(world, data, output)
    assert status == 1, message
    reason = " ".join(message.rpartition("error: ")[2].split())
    assert reason.startswith("the loss of step 2 is not a finite number, so it was not taken")
    assert f"look at the labelled answers of its batch, from {data}:" in reason
    assert len(re.findall(r"row \d+ of 30", reason)) == 4
    assert [one.name for one in (output / "checkpoints").iterdir()] == ["checkpoint-1"]
    end_process(output)
    assert start(world, data, output)[0] == start(world, data, uncut)[0] == 0
    weights = [load_file(folder / "final" / "adapter_model.safetensors") for folder in (output, uncut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_unpaired_labels_of_a_label_run_are_what_it_learns_from(finished_recipe: Path, tmp_path: Path) -> None:
    runs = finished_recipe / "runs"
    words_of_label = ("label", "--config", runs / "label" / "config.resolved.yaml", "--output", tmp_path / "label")
    status, message = run_here(*words_of_label, "--formats", "unpaired", "--tracking.mode", "disabled")
    assert status == 0, message
    file = tmp_path / "label" / "final" / "unpaired.jsonl"
    pairs = {row["id"]: row for row in read_rows(runs / "sample" / "final" / "pairs.jsonl")}
    for row in read_rows(file):
        drawn = {one["text"]: one for one in pairs[row["pair_id"]]["completions"]}[row["completion"][0]["content"]]
        assert (row["ids"], row.get("finished", True)) == (drawn["ids"], drawn["finished"])
    read = read_answers(str(tmp_path / "label"))
    assert len(read) == len(read_rows(file))
    assert all(answer.split and answer.prompt_id for answer in read)
    training = ("--training.max-steps", "1", "--training.per-device-batch-size", "2")
    common = ("dpo", "--algorithm", "kto", "--policy", runs / "sft", "--tracking.mode", "disabled", *training)
    status, message = run_here(*common, "--preferences", tmp_path / "label", "--output", tmp_path / "kto")
    assert status == 0, message
    assert read_metrics(tmp_path / "kto")[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert read_manifest(tmp_path / "kto")["kinds"] == ["simulated"]
    status, message = run_here(*common, "--preferences", runs / "label", "--output", tmp_path / "none")
    assert (status, "holds no unpaired.jsonl" in message, "formats: [unpaired]" in message) == (1, True, True), message


# --- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"per_device_batch_size": 1}}, "KTO estimates its KL .* give 2 or more"),
        ({"loss_type": ["sigmoid"]}, "no 'sigmoid' among KTO's losses: it is one of --algorithm dpo"),
        ({"loss_type": ["kto", "apo_zero_unpaired"]}, "kto trains with one loss"),
        ({"soft_labels": True}, "soft_labels: --algorithm kto has no such thing"),
        ({"strength_as": "margin", "margin_scale": 2.0}, "strength_as, margin_scale: --algorithm kto"),
        ({"label_smoothing": 0.1}, "label_smoothing: --algorithm kto"),
        ({"prompt_by_prompt": False}, "prompt_by_prompt: --algorithm kto"),
        ({"desirable_weight": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_kto_does_not_have(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**settings)
    config(training={"per_device_batch_size": 1}, loss_type=["apo_zero_unpaired"])


def test_dpo_has_no_weights_of_labels() -> None:
    with pytest.raises(ValidationError, match="desirable_weight: --algorithm dpo has no such thing"):
        DPOConfig(output="x", policy="x", preferences="x", desirable_weight=2.0)


ROW = {"prompt": "water", "completion": "more", "label": True}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "water", "chosen": "more", "rejected": "less"}, "a pair, but KTO learns from single answers"),
        ({"prompt": "water", "completion": "more"}, "label: missing"),
        ({**ROW, "label": "fine"}, "'fine' in it is neither true nor false"),
        ({**ROW, "weight": 2.0}, "weight: it applies to pairs"),
        ({**ROW, "completion": " "}, "the completion is empty"),
    ],
)
def test_rows_that_are_no_labelled_answers(row: dict[str, Any], message: str, world: World, tmp_path: Path) -> None:
    status, printed = start(world, write_rows(tmp_path / "rows.jsonl", [row]), tmp_path / "out")
    assert (status, message in printed) == (1, True), printed
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_labelled_answers_are_no_pairs(world: World, tmp_path: Path) -> None:
    rows = [{**ROW, "prompt": f"{text} root", "label": n % 2 == 0} for n, text in enumerate(questions(4))]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    status, message = run_here("dpo", "--output", tmp_path / "out", "--policy", world.policy, "--preferences", data)
    assert (status, "tiebreak dpo --algorithm kto" in message) == (1, True), message


def test_one_label_and_one_prompt_are_refused_and_imbalance_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """Eq. 8: one desirable answer to three undesirable ones is balanced by a weight of 3 to 4."""
    one = EncodedAnswer([2], [3, 1], True)
    with pytest.raises(DataError, match="every one of the 2 labelled answers for training is desirable"):
        require_balance([one, one], config())
    with pytest.raises(DataError, match="all labelled answers have the same prompt"):
        spares_of([one, replace(one, label=False)])
    rows = [one, *[replace(one, label=False)] * 3]
    require_balance(rows, config(desirable_weight=3.5))
    require_balance([one, replace(one, label=False)], config())
    assert capsys.readouterr().err == ""
    require_balance(rows, config())
    printed = capsys.readouterr().err
    assert "weigh 0.33 to 1" in printed
    assert "desirable_weight from 3.00 to 4.00, or undesirable_weight from 0.25 to 0.33" in printed


def test_the_data_command_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiebreak.command.cli import main

    data = write_rows(tmp_path / "rows.jsonl", [ROW, {**ROW, "prompt": "light", "label": False}])
    main(["data", str(data), "--as", "answers", "--policy", "null"])
    printed = capsys.readouterr().out
    assert "makes     2 answers, of 2 prompts" in printed
    assert f"tiebreak dpo --algorithm kto takes it as --preferences {data}" in printed
