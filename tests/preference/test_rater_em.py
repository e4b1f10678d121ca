"""Labels estimated from votes: posteriors and reliabilities by hand, the likelihood's optimum, a liar found by the policy,
and resumption to the bit."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import World, write_preferences
from support import end_process, on_two_processes, read_rows, run_here, write_rows
from torch import Tensor

from preference.configuration import DPOConfig, RaterEMConfig
from preference.rater_em import RATERS, ROW, VOTES, PairVotes, RaterEM, collate_votes, require_votes, votes_of
from tiebreak.errors import DataError
from tiebreak.records import Preference
from tiebreak.runs.run import read_manifest


def em_of(*votes: dict[str, int], **settings: float) -> RaterEM:
    return RaterEM([PairVotes(tuple(one), tuple(one.values())) for one in votes], RaterEMConfig(**settings))


def margins_to_posteriors(em: RaterEM, margins: list[float]) -> Tensor:
    batch = collate_votes([em.columns(row) for row in range(len(margins))])
    return em.posterior(torch.tensor(margins, dtype=torch.float64), batch[RATERS], batch[VOTES])


def test_posteriors_by_hand() -> None:
    """Odds multiply: of a margin ln 3 they are 3, of a vote by a rater of reliability .9 they are 9, or 1/9."""
    em = em_of({"a": 1}, {"a": -1}, {"a": 1, "b": 1}, {"a": 1, "b": -1}, {}, reliability=0.9)
    found = margins_to_posteriors(em, [0.0, math.log(3), -math.log(3), 0.0, math.log(3)])
    assert found.tolist() == pytest.approx([9 / 10, (3 / 9) / (1 + 3 / 9), 27 / 28, 1 / 2, 3 / 4])


def test_reliabilities_by_hand() -> None:
    """Two pairs with q = .8 and .3. Rater a is right with .8 and, voting against, with .7; the prior counts as 4 of .9."""
    em = em_of({"a": 1, "b": 1}, {"a": -1}, {"b": 1})
    em.renew([0, 1], [0.8, 0.3])
    assert em.reliability.tolist() == pytest.approx([(0.8 + 0.7 + 3.6) / 6, (0.8 + 3.6) / 5])
    em.renew([0], [0.5])  # a pair's latest q takes the place of its earlier one
    assert em.reliability.tolist() == pytest.approx([(0.5 + 0.7 + 3.6) / 6, (0.5 + 3.6) / 5])
    assert em.facts()["rater_em"]["raters"]["b"]["votes"] == 2
    assert em.facts()["rater_em"]["doubted_pairs"] == 1


def test_it_ends_at_a_maximum_of_the_likelihood_of_the_votes() -> None:
    """A policy with a margin for each of eight kinds of pairs, 160 pairs, five raters. No step lowers the likelihood; at
    the end, its gradient by autograd (with the prior) is 0 in margins and reliabilities."""
    chance = torch.Generator().manual_seed(0)
    kinds = torch.arange(160) % 8
    truth = torch.where(
        torch.rand(160, generator=chance) < 0.85, 1, -1
    )  # of each kind, the chosen one is mostly better
    right = torch.tensor([0.95, 0.9, 0.8, 0.6, 0.2])
    agrees = torch.rand(160, 5, generator=chance) < right
    asked = torch.rand(160, 5, generator=chance) < 0.6
    signs = torch.where(agrees, truth[:, None], -truth[:, None]) * asked
    em = em_of(*({f"r{k}": int(v) for k, v in enumerate(row) if v} for row in signs.tolist()))

    def likelihood(margins: Tensor, reliability: Tensor) -> Tensor:
        log_right, log_wrong = reliability.log(), (1 - reliability).log()
        for_chosen = torch.where(signs == 0, 0.0, torch.where(signs > 0, log_right, log_wrong)).sum(1)
        for_rejected = torch.where(signs == 0, 0.0, torch.where(signs > 0, log_wrong, log_right)).sum(1)
        m = margins[kinds]
        both = torch.stack(
            [torch.nn.functional.logsigmoid(m) + for_chosen, torch.nn.functional.logsigmoid(-m) + for_rejected]
        )
        prior = 4 * (0.9 * log_right + 0.1 * log_wrong)
        return both.logsumexp(0).sum() + prior.sum()

    margins = torch.zeros(8, dtype=torch.float64)
    values = []
    for _ in range(400):
        q = margins_to_posteriors(em, margins[kinds].tolist())
        margins = torch.stack([torch.logit(q[kinds == kind].mean()) for kind in range(8)])  # cDPO's minimum
        em.renew(list(range(160)), q.tolist())
        values.append(float(likelihood(margins, em.reliability)))
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(values))
    margins.requires_grad_()
    reliability = em.reliability.clone().requires_grad_()
    likelihood(margins, reliability).backward()
    assert margins.grad is not None
    assert reliability.grad is not None
    assert float(margins.grad.abs().max()) < 1e-6
    assert float(reliability.grad.abs().max()) < 1e-6
    assert em.reliability.tolist() == pytest.approx(right.tolist(), abs=0.12)


def row_of(**columns: Any) -> Preference:
    answer = {"role": "assistant", "content": "x"}
    row = {"prompt": [{"role": "user", "content": "y"}], "chosen": [answer], "rejected": [{**answer, "content": "z"}]}
    return Preference.model_validate({**row, **columns})


def test_votes_are_those_of_the_row_or_of_raters_who_all_agree() -> None:
    votes = [{"rater": "a", "vote": 1}, {"rater": "b", "vote": 0}, {"rater": "c", "vote": -1}]
    assert votes_of(row_of(votes=votes)) == PairVotes(("a", "c"), (1, -1))
    assert votes_of(row_of(raters=("a", "b"), agreement=1.0)) == PairVotes(("a", "b"), (1, 1))
    assert votes_of(row_of(raters=("a",))) == PairVotes(("a",), (1,))
    assert votes_of(row_of(raters=("a", "b"), agreement=0.6)) is None
    assert votes_of(row_of()) is None


def test_collated_votes_are_padded_and_rows_without_em_have_none() -> None:
    em = em_of({"a": 1, "b": -1}, {"b": 1}, {})
    batch = collate_votes([em.columns(row) for row in (1, 0, 2)])
    assert batch[ROW].tolist() == [1, 0, 2]
    assert batch[RATERS].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert batch[VOTES].tolist() == [[1, 0], [1, -1], [0, 0]]
    assert collate_votes([{"prompt_ids": [1]}]) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": ["ipo"]}, "must be a log-odds"),
        ({"soft_labels": True}, "what soft_labels reads from the row"),
        ({"algorithm": "simpo"}, "has no such thing"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPOConfig(output="x", policy="x", preferences="x", rater_em=True, **settings)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"votes": [{"rater": "a", "vote": 1}, {"rater": "a", "vote": 1}]}, r"2 preferences of 2 have .*\('a'\)"),
        ({"raters": ["a", "a"], "agreement": 1.0}, "several votes of one rater"),
        ({"votes": [{"rater": "a", "vote": 0}]}, "no rater voted for either answer"),
        ({}, "name no raters"),
    ],
)
def test_votes_that_cannot_be_counted_are_refused(columns: dict[str, Any], message: str) -> None:
    """Three votes of one rater would count as those of three."""
    with pytest.raises(DataError, match=message):
        require_votes([row_of(**columns)] * 2)
    require_votes([row_of(votes=[{"rater": "a", "vote": 0}]), row_of(raters=("a",))])


# --- whole runs


def with_a_liar(file: Path) -> Path:
    """96 preferences for "more", one vote each; of every third pair, a liar's, who prefers the other answer."""
    rows = []
    for number, row in enumerate(read_rows(write_preferences(file, count=96))):
        lies = number % 3 == 0
        sides = {"chosen": row["rejected"], "rejected": row["chosen"]} if lies else {}
        rows.append({**row, **sides, "raters": ["liar" if lies else "honest"], "split": "train"})
    return write_rows(file, rows)


def run_dpo(world: World, folder: Path, data: Path, steps: int, *flags: str) -> tuple[int, str]:
    return run_here("dpo", *words_of(world, folder, data, steps), *flags)


def words_of(world: World, folder: Path, data: Path, steps: int) -> list[str | Path]:
    return [
        *("--output", folder, "--policy", world.policy, "--preferences", data, "--validation-share", "0"),
        *("--tracking.mode", "disabled", "--adapter.r", "4", "--adapter.alpha", "8", "--beta", "1"),
        *("--training.max-length-tokens", "32", "--training.learning-rate", "0.003", "--training.save-steps", "4"),
        *(
            "--training.per-device-batch-size",
            "8",
            "--training.max-steps",
            str(steps),
            "--training.precision",
            "float32",
        ),
        *("--training.lr-scheduler", "constant_with_warmup", "--training.warmup-share", "0", "--rater-em", "true"),
    ]


@pytest.mark.slow
def test_the_policy_finds_the_rater_who_lies(world: World, tmp_path: Path) -> None:
    """Each pair has one vote, so no two raters can be compared: only the policy's own margin tells who is wrong."""
    data = with_a_liar(tmp_path / "rows.jsonl")
    status, message = run_dpo(world, tmp_path / "dpo", data, 15)
    assert status == 0, message
    found = read_manifest(tmp_path / "dpo")["rater_em"]
    assert found["raters"]["liar"]["votes"] == 32
    assert found["raters"]["liar"]["reliability"] < 0.5 < 0.85 < found["raters"]["honest"]["reliability"]
    assert 22 <= found["doubted_pairs"] <= 36
    logged = [row for row in read_rows(tmp_path / "dpo" / "metrics.jsonl") if "rater_em/doubted" in row]
    assert logged[0]["rater_em/doubted"] == 0.0
    assert logged[0]["rater_em/posterior"] == pytest.approx(0.9, abs=1e-5)  # at the start the margin is 0


def test_a_run_cut_off_ends_with_the_same_weights_and_reliabilities(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[tuple[Any, dict[str, Tensor]]] = []

    def cut(trainer: Any, *_: Any, facts: dict[str, Any], **__: Any) -> None:
        ends.append((facts, {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}))
        raise KeyboardInterrupt

    monkeypatch.setattr("tiebreak.training.skeleton.finish_adapter", cut)
    data = with_a_liar(tmp_path / "rows.jsonl")
    results = []
    for _ in range(2):
        results.append(run_dpo(world, tmp_path / "dpo", data, 6))
        end_process(tmp_path / "dpo")
        shutil.rmtree(tmp_path / "dpo" / "checkpoints" / "checkpoint-6")
    assert [status for status, _ in results] == [130, 130]
    assert "checkpoint-4" in results[1][1]
    (facts, weights), (again, after) = ends
    assert facts["rater_em"] == again["rater_em"]
    assert all(torch.equal(weight, after[name]) for name, weight in weights.items())


@pytest.mark.slow
def test_batches_passes_and_accumulation_change_nothing(world: World, tmp_path: Path) -> None:
    """Reliabilities change between steps alone: 8 pairs at once are 2 times 4."""
    data = with_a_liar(tmp_path / "rows.jsonl")
    halves = ("--training.per-device-batch-size", "4", "--training.gradient-accumulation-steps", "2")
    for name, flags in {"whole": (), "halves": halves}.items():
        status, message = run_dpo(world, tmp_path / name, data, 3, "--prompt-by-prompt", "false", *flags)
        assert status == 0, message
    whole, halved = (read_manifest(tmp_path / name)["rater_em"] for name in ("whole", "halves"))
    for rater, one in whole["raters"].items():
        assert one["reliability"] == pytest.approx(halved["raters"][rater]["reliability"], abs=1e-4)


@pytest.mark.proof
def test_two_processes_share_the_reliabilities_of_one(world: World, tmp_path: Path) -> None:
    """To the last digit that the manifest has: 8 pairs on one process, 4 on each of two."""
    data = with_a_liar(tmp_path / "rows.jsonl")
    assert run_dpo(world, tmp_path / "one", data, 3, "--prompt-by-prompt", "false")[0] == 0
    half = ("--prompt-by-prompt", "false", "--training.per-device-batch-size", "4")
    on_two_processes("ddp", "tests/preference/dpo_on_two.py", *words_of(world, tmp_path / "two", data, 3), *half)
    one, two = (read_manifest(tmp_path / name)["rater_em"] for name in ("one", "two"))
    assert one == two


def test_rows_without_raters_are_refused(world: World, tmp_path: Path) -> None:
    data = write_preferences(tmp_path / "rows.jsonl", count=12)
    status, message = run_dpo(world, tmp_path / "dpo", data, 3)
    assert (status, "12 preferences of 12 name no raters" in message) == (1, True), message
