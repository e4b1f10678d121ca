"""PPO's mathematics, against numbers worked by hand and against a plain float64 loop over tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from preference.policy.token_rewards import per_token_kl, per_token_kl_k3, shape_scores, token_rewards
from preference.ppo.losses import generalised_advantages, next_kl_coef, policy_loss, value_loss, whiten

Array = NDArray[np.float64]


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_batch(seed: int, episodes: int = 5, width: int = 7) -> tuple[dict[str, Array], list[int]]:
    """Tables of shape (episodes, width), full of noise behind each episode's end too, and the lengths."""
    rng = np.random.default_rng(seed)
    lengths = [1, width, *rng.integers(1, width + 1, episodes - 2).tolist()]
    names = ("rewards", "values", "logps", "old_logps", "reference", "advantages", "returns")
    return {name: rng.normal(size=(episodes, width)) for name in names}, lengths


def mask_of(lengths: list[int], width: int = 7) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


# --- advantages ----------------------------------------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    """Two tokens and a masked one; gamma 0.5, lam 0.5.

    rewards 1, 2; values 3, 4.
    δ_1 = 2 + 0.5·0 − 4 = −2           A_1 = −2                 return 2
    δ_0 = 1 + 0.5·4 − 3 = 0            A_0 = 0 + 0.25·(−2) = −0.5   return 2.5
    """
    advantages, returns = generalised_advantages(
        tensor([[1.0, 2.0, 77.0]]), tensor([[3.0, 4.0, 55.0]]), torch.tensor([[True, True, False]]), gamma=0.5, lam=0.5
    )
    assert advantages.tolist() == [[-0.5, -2.0, 0.0]]
    assert returns.tolist() == [[2.5, 2.0, 0.0]]


def loop_advantages(rewards: Array, values: Array, gamma: float, lam: float) -> Array:
    """Equation 16 of Schulman et al. 2016 as it is written: a sum over all later steps of one episode."""
    steps = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(steps)]
    return np.array([sum((gamma * lam) ** k * deltas[t + k] for k in range(steps - t)) for t in range(steps)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_advantages_are_the_sum_over_later_steps(seed: int, gamma: float, lam: float) -> None:
    tables, lengths = random_batch(seed)
    advantages, returns = generalised_advantages(
        tensor(tables["rewards"]), tensor(tables["values"]), mask_of(lengths), gamma, lam
    )
    for row, n in enumerate(lengths):
        expected = loop_advantages(tables["rewards"][row, :n], tables["values"][row, :n], gamma, lam)
        np.testing.assert_allclose(advantages[row, :n], expected, atol=1e-12)
        np.testing.assert_allclose(returns[row, :n], expected + tables["values"][row, :n], atol=1e-12)
        assert not advantages[row, n:].any()
        assert not returns[row, n:].any()


def test_with_gamma_and_lam_1_returns_are_the_rewards_to_go() -> None:
    tables, lengths = random_batch(11)
    _, returns = generalised_advantages(tensor(tables["rewards"]), tensor(tables["values"]), mask_of(lengths), 1.0, 1.0)
    for row, n in enumerate(lengths):
        to_go = tables["rewards"][row, :n][::-1].cumsum()[::-1]
        np.testing.assert_allclose(returns[row, :n], to_go, atol=1e-12)


def test_with_lam_0_advantages_look_one_step_ahead() -> None:
    """A_t = r_t + γ·V_{t+1} − V_t: 1 + 0.5·4 − 3 = 0 and 2 − 4 = −2."""
    advantages, _ = generalised_advantages(
        tensor([[1.0, 2.0]]), tensor([[3.0, 4.0]]), torch.ones(1, 2, dtype=torch.bool), 0.5, 0.0
    )
    assert advantages.tolist() == [[0.0, -2.0]]


# --- rewards -------------------------------------------------------------------------------------------------------


def test_token_rewards_by_hand() -> None:
    """kl_coef 0.1: −0.1·KL at each token, and the score at the last one, wherever that is.

    Row 0 (three tokens, score 2): −0.1, 0.2, −0.3 + 2.  Row 1 (one token, score −1): −0.4 − 1.
    """
    kl = tensor([[1.0, -2.0, 3.0], [4.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rewards = token_rewards(tensor([2.0, -1.0]), kl, mask, kl_coef=0.1)
    torch.testing.assert_close(rewards, tensor([[-0.1, 0.2, 1.7], [-1.4, 0.0, 0.0]]))


@pytest.mark.parametrize("seed", range(3))
def test_an_episodes_rewards_add_up_to_score_less_kl(seed: int) -> None:
    tables, lengths = random_batch(seed)
    scores = tables["returns"][:, 0]
    rewards = token_rewards(tensor(scores), tensor(tables["rewards"]), mask_of(lengths), kl_coef=0.3)
    for row, n in enumerate(lengths):
        expected = scores[row] - 0.3 * tables["rewards"][row, :n].sum()
        assert float(rewards[row].sum()) == pytest.approx(expected, abs=1e-12)
        assert not rewards[row, n:].any()


def test_kl_by_hand() -> None:
    """½ against ¼ is log 2, ¼ against ½ is −log 2, and the same is 0."""
    kl = per_token_kl(tensor([0.5, 0.25, 0.3]).log(), tensor([0.25, 0.5, 0.3]).log())
    torch.testing.assert_close(kl, tensor([math.log(2), -math.log(2), 0.0]))


def test_the_kl_is_its_mean() -> None:
    """Over all tokens, weighted by the policy, the estimates add up to Σ p·log(p/q)."""
    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.ones(9)), rng.dirichlet(np.ones(9))
    estimates = per_token_kl(tensor(p).log(), tensor(q).log())
    assert float((tensor(p) * estimates).sum()) == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-12)


def ascend(estimate: Callable[[Tensor, Tensor], Tensor], rewards: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Where exact policy-gradient ascent on E[r − β·estimate] leads a softmax over a few answers, in 100 steps."""
    logits = reference.log().clone()
    for _ in range(100):
        p = logits.softmax(0)
        signal = rewards - beta * estimate(p.log(), reference.log())
        logits = logits + 0.5 * p * (signal - (p * signal).sum())  # Σ_y p_y·signal_y·∂ log p_y/∂ logits
    return logits.softmax(0)


@pytest.mark.parametrize("beta", [2.0, 5.0])
def test_with_our_kl_in_the_reward_ascent_ends_at_the_tilted_reference_and_with_k3_it_collapses(beta: float) -> None:
    """The KL is taken from the reward, so what counts is the gradient of its estimate, not its mean.

    E[k1·∇log π] is the KL's gradient. E[k3·∇log π] is another vector, which vanishes to first order at the reference
    and points away from it beyond: the policy runs to one answer whatever β is. That is why it is only watched.
    """
    reference, rewards = tensor([0.4, 0.3, 0.2, 0.1]), tensor([0.0, 1.0, -1.0, 0.5])
    target = (reference.log() + rewards / beta).softmax(0)
    torch.testing.assert_close(ascend(per_token_kl, rewards, reference, beta), target, atol=1e-5, rtol=0)
    assert float(ascend(per_token_kl_k3, rewards, reference, beta).max()) > 0.99 > float(target.max()) + 0.5


@pytest.mark.parametrize("seed", range(3))
def test_both_estimates_have_the_divergence_as_their_mean_and_k3_is_the_steadier(seed: int) -> None:
    """Exactly, over all answers of a softmax: Σ p·k1 = Σ p·k3 = KL(p ‖ q), and k3 is nowhere negative."""
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.ones(12) * 3)
    p = q * np.exp(rng.normal(size=12) * 0.2)
    p /= p.sum()
    kl = float((p * np.log(p / q)).sum())
    estimates = [f(tensor(np.log(p)), tensor(np.log(q))).numpy() for f in (per_token_kl, per_token_kl_k3)]
    means = [float((p * e).sum()) for e in estimates]
    assert means == pytest.approx([kl, kl], abs=1e-12)
    variances = [float((p * (e - kl) ** 2).sum()) for e in estimates]
    assert variances[1] < variances[0] / 10
    assert (estimates[1] >= 0).all()


def test_scores_are_normalised_weighted_and_penalised() -> None:
    """Rewards (3, 5) and (1, 0) with scales (1, 2) and (0, 1), weights 1 and −0.5.

    (3 − 1)/2 − 0.5·1 = 0.5 and (5 − 1)/2 − 0.5·0 = 2. The second was cut off: less 0.5. Lengths 4 and 10, each token
    0.1: less 0.4 and 1. That is 0.1 and 0.5.
    """
    shaped = shape_scores(
        tensor([[3.0, 5.0], [1.0, 0.0]]),
        torch.tensor([True, False]),
        torch.tensor([4, 10]),
        weights=[1.0, -0.5],
        scales=[(1.0, 2.0), (0.0, 1.0)],
        missing_eos_penalty=0.5,
        length_penalty=0.1,
    )
    torch.testing.assert_close(shaped, tensor([0.1, 0.5]))


def test_one_reward_of_one_token_is_enough() -> None:
    """(3 − 1)/2 = 1, at the only token of the only episode; and each reward needs its weight and scale."""
    one = {
        "finished": torch.tensor([True]),
        "lengths": torch.tensor([1]),
        "missing_eos_penalty": 1.0,
        "length_penalty": 0.0,
    }
    scores = shape_scores(tensor([[3.0]]), weights=[1.0], scales=[(1.0, 2.0)], **one)
    torch.testing.assert_close(scores, tensor([1.0]))
    rewards = token_rewards(scores, tensor([[0.5]]), torch.tensor([[True]]), kl_coef=0.2)
    torch.testing.assert_close(rewards, tensor([[0.9]]))
    advantages, returns = generalised_advantages(rewards, tensor([[0.4]]), torch.tensor([[True]]), 1.0, 0.95)
    torch.testing.assert_close((advantages, returns), (tensor([[0.5]]), tensor([[0.9]])))
    with pytest.raises(ValueError, match="longer"):
        shape_scores(tensor([[3.0]]), weights=[1.0, 2.0], scales=[(1.0, 2.0)], **one)


def test_the_kl_coefficient_by_hand() -> None:
    """Target 6, horizon 10,000, 500 episodes: KL 6.6 is 0.1 too much, so ×(1 + 0.1·0.05); 60 and 0 are clipped at ±0.2."""
    step = {"target": 6.0, "horizon": 10_000, "episodes": 500}
    assert next_kl_coef(0.2, 6.6, **step) == pytest.approx(0.2 * 1.005)
    assert next_kl_coef(0.2, 60.0, **step) == pytest.approx(0.2 * 1.01)
    assert next_kl_coef(0.2, 0.0, **step) == pytest.approx(0.2 * 0.99)
    assert next_kl_coef(0.2, 6.0, **step) == 0.2


# --- whitening -----------------------------------------------------------------------------------------------------


def test_whitening_by_hand() -> None:
    """1 and 3 count, with mean 2 and variance 1, and become −1 and 1; with the mean kept, 1 and 3 again."""
    values, mask = tensor([[1.0, 3.0, 50.0]]), torch.tensor([[True, True, False]])
    torch.testing.assert_close(whiten(values, mask, tensor(2.0), tensor(1.0)), tensor([[-1.0, 1.0, 0.0]]))
    kept = whiten(values, mask, tensor(2.0), tensor(1.0), keep_mean=True)
    torch.testing.assert_close(kept, tensor([[1.0, 3.0, 0.0]]))


def test_values_that_are_all_alike_are_whitened_to_0() -> None:
    values = tensor([[2.0, 2.0]])
    white = whiten(values, torch.tensor([[True, True]]), tensor(2.0), tensor(0.0))
    torch.testing.assert_close(white, tensor([[0.0, 0.0]]))


@pytest.mark.parametrize("keep_mean", [False, True])
def test_whitened_values_have_variance_1(keep_mean: bool) -> None:
    tables, lengths = random_batch(5)
    mask = mask_of(lengths)
    counted = tables["rewards"][mask.numpy()]
    white = whiten(tensor(tables["rewards"]), mask, tensor(counted.mean()), tensor(counted.var()), keep_mean)
    assert float(white[mask].std(correction=0)) == pytest.approx(1.0, abs=1e-6)
    assert float(white[mask].mean()) == pytest.approx(counted.mean() if keep_mean else 0.0, abs=1e-9)
    assert not white[~mask].any()


# --- losses --------------------------------------------------------------------------------------------------------


def test_policy_loss_by_hand() -> None:
    """ε = 0.2. −min(ρA, clip(ρ)A):

    ρ 1.5, A  1: −min(1.5, 1.2)   = −1.2, clipped       ρ 1.5, A −1: −min(−1.5, −1.2) = 1.5
    ρ 0.5, A  1: −min(0.5, 0.8)   = −0.5                ρ 0.5, A −1: −min(−0.5, −0.8) = 0.8, clipped
    ρ 1.1, A  2: −2.2                                   ρ 1.0, A −3: 3
    """
    ratio = tensor([[1.5, 1.5, 0.5, 0.5, 1.1, 1.0]])
    advantages = tensor([[1.0, -1.0, 1.0, -1.0, 2.0, -3.0]])
    old = tensor([[-1.0, -2.0, -3.0, -0.5, -0.1, 0.0]])
    result = policy_loss(old + ratio.log(), old, advantages, cliprange=0.2)
    torch.testing.assert_close(result.loss, tensor([[-1.2, 1.5, -0.5, 0.8, -2.2, 3.0]]))
    assert result.clipped.tolist() == [[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]]
    torch.testing.assert_close(result.ratio, ratio)
    torch.testing.assert_close(result.approximate_kl, 0.5 * ratio.log() ** 2)


def test_the_policys_gradient_is_the_advantage_where_nothing_is_clipped_and_0_where_it_is() -> None:
    """d/d log π of −ρA is −ρA; a clipped token does not move."""
    logps = tensor([[math.log(1.1), math.log(1.5), math.log(1.5)]]).requires_grad_()
    policy_loss(logps, torch.zeros(1, 3, dtype=torch.float64), tensor([[2.0, 1.0, -1.0]]), 0.2).loss.sum().backward()
    torch.testing.assert_close(logps.grad, tensor([[-2.2, 0.0, 1.5]]))


@pytest.mark.parametrize("seed", range(4))
def test_losses_agree_with_a_loop(seed: int) -> None:
    tables, lengths = random_batch(seed)
    policy = policy_loss(tensor(tables["logps"]), tensor(tables["old_logps"]), tensor(tables["advantages"]), 0.3)
    value, value_clipped = value_loss(
        tensor(tables["values"]), tensor(tables["rewards"]), tensor(tables["returns"]), 0.4
    )
    for row, n in enumerate(lengths):
        for t in range(n):
            ratio = math.exp(tables["logps"][row, t] - tables["old_logps"][row, t])
            advantage = tables["advantages"][row, t]
            expected = -min(ratio * advantage, min(max(ratio, 0.7), 1.3) * advantage)
            assert float(policy.loss[row, t]) == pytest.approx(expected, abs=1e-12)
            new, old, target = (tables[name][row, t] for name in ("values", "rewards", "returns"))
            limited = old + min(max(new - old, -0.4), 0.4)
            assert float(value[row, t]) == pytest.approx(
                max((new - target) ** 2, (limited - target) ** 2) / 2, abs=1e-12
            )
            assert bool(value_clipped[row, t]) == ((limited - target) ** 2 > (new - target) ** 2)


def test_value_loss_by_hand() -> None:
    """ε = 0.5, V_old = 0.

    V 2, R 1: max((2 − 1)², (0.5 − 1)²)/2 = 0.5          V 2, R 3: max((2 − 3)², (0.5 − 3)²)/2 = 3.125, clipped
    """
    value, clipped = value_loss(tensor([2.0, 2.0]), tensor([0.0, 0.0]), tensor([1.0, 3.0]), cliprange=0.5)
    assert value.tolist() == [0.5, 3.125]
    assert clipped.tolist() == [0.0, 1.0]


def test_a_wide_range_clips_nothing() -> None:
    tables, _ = random_batch(9)
    logps, old, advantages = (tensor(tables[n]) for n in ("logps", "old_logps", "advantages"))
    policy = policy_loss(logps, old, advantages, cliprange=1e9)
    torch.testing.assert_close(policy.loss, -(logps - old).exp() * advantages)
    assert not policy.clipped.any()
    values, returns = tensor(tables["values"]), tensor(tables["returns"])
    value, _ = value_loss(values, old, returns, cliprange=1e9)
    torch.testing.assert_close(value, 0.5 * (values - returns) ** 2)


def test_what_lies_behind_the_end_changes_nothing() -> None:
    """The same episodes with other noise, and with more padding, give the same rewards, advantages and returns."""
    tables, lengths = random_batch(21)
    rng = np.random.default_rng(0)

    def targets(noise: bool, extra: int) -> list[Array]:
        padded = {name: np.pad(table, ((0, 0), (0, extra))) for name, table in tables.items()}
        mask = mask_of(lengths, 7 + extra)
        if noise:
            for table in padded.values():
                table[~mask.numpy()] = rng.normal(size=int((~mask).sum())) * 100
        scores = tensor(tables["returns"][:, 0])
        kl = per_token_kl(tensor(padded["logps"]), tensor(padded["reference"]))
        rewards = token_rewards(scores, kl, mask, kl_coef=0.2)
        advantages, returns = generalised_advantages(rewards, tensor(padded["values"]), mask, 0.9, 0.8)
        return [table.numpy()[:, :7] for table in (rewards, advantages, returns)]

    plain = targets(noise=False, extra=0)
    for other in (targets(noise=True, extra=0), targets(noise=True, extra=3)):
        for one, two in zip(plain, other, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-12)
