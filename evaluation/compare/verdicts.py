"""Verdicts on policies against the baseline, in words that claim no more than the figures show.

A verdict needs 30 prompts, and uses McNemar's test of the prompts that one of the two wins. Holm's method adjusts the
p-values of all comparisons in a report (every evaluation, policy and yardstick), so that a false verdict among all of them
is as rare as in a single comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.compare.lineage import Lineage
from evaluation.compare.reading import Evaluation, Link
from evaluation.compare.words import edge, label, listed
from evaluation.yardstick_figures import conclusion
from tiebreak.measures.statistics import Interval, Outcomes, holm, needed_prompts, wilson_interval
from tiebreak.page.numbers import number, p_value, percent, short
from tiebreak.stages import find_stage

MANY_PROMPTS = 30
"""Below this many prompts there is no verdict, whatever the test (Hesterberg 2015, section 4)."""
LEVEL = 0.05
SHOWN_WIN_RATE = 0.65
"""Win rate assumed for "about n more": prompts that show it four times in five."""
FIRST = ""
"""key of the first yardstick, whose outcomes decide the verdicts on policies"""
GUARD_INPUT = "guard.reward_model"


@dataclass(frozen=True)
class Verdict:
    """A policy against the baseline."""

    outcome: str
    """`better`, `worse`, `undecided`, `too few` prompts to tell, or `unknown` without a baseline"""
    outcomes: Outcomes | None = None
    p_value: float | None = None
    """after Holm's correction over all comparisons of the report"""
    comparisons: int = 1

    def figures(self) -> dict[str, Any]:
        """Its entries in report.json."""
        return {"verdict": self.outcome, "p_value": self.p_value, "comparisons": self.comparisons}


@dataclass(frozen=True)
class Verdicts:
    """The verdicts of one evaluation."""

    policies: dict[str, Verdict]
    """by policy, without the baseline's ancestors; from the first yardstick"""
    yardsticks: dict[tuple[str, str], float]
    """(policy, further yardstick) → p-value after Holm's correction over all comparisons of the report"""


def verdict(interval: Interval | None) -> str:
    """One win rate alone against 50%: `better`, `worse`, `undecided`, or `unknown` without an interval."""
    if interval is None:
        return "unknown"
    return "better" if interval[0] > 0.5 else "worse" if interval[1] < 0.5 else "undecided"


def find_verdicts(evaluations: Mapping[str, Evaluation], chains: Mapping[str, Sequence[Link]]) -> dict[str, Verdicts]:
    """The verdicts of all evaluations of a report, corrected together.

    Args:
        evaluations: by a distinguishing name.
        chains: the runs behind each.
    """
    compared = {
        (where, name, yardstick): outcomes
        for where, evaluation in evaluations.items()
        for (name, yardstick), outcomes in _comparisons(evaluation, chains[where]).items()
    }
    adjusted = dict(zip(compared, holm([one.p_value for one in compared.values()]), strict=True))

    def verdict_on(where: str, name: str) -> Verdict:
        outcomes = compared.get((where, name, FIRST))
        if outcomes is None:
            return Verdict("unknown")
        p_value = adjusted[where, name, FIRST]
        return Verdict(_outcome(outcomes, p_value), outcomes, p_value, len(compared))

    return {
        where: Verdicts(
            {name: verdict_on(where, name) for name in Lineage(evaluation, chains[where]).subjects()},
            {(name, one): p for (at, name, one), p in adjusted.items() if at == where and one != FIRST},
        )
        for where, evaluation in evaluations.items()
    }


def count_comparisons(verdicts: Mapping[str, Verdicts]) -> int:
    """The number of comparisons that were corrected together."""
    return sum(
        len(one.yardsticks) + sum(found.p_value is not None for found in one.policies.values())
        for one in verdicts.values()
    )


def _comparisons(evaluation: Evaluation, links: Sequence[Link]) -> dict[tuple[str, str], Outcomes]:
    """(policy, yardstick) → its outcomes against the baseline; `FIRST` is the first yardstick."""
    baseline = evaluation.baseline
    if baseline not in evaluation.policies:
        return {}
    subjects = Lineage(evaluation, links).subjects()
    found = {(name, FIRST): evaluation.outcomes(name, baseline) for name in subjects}
    for name in evaluation.policies:
        for yardstick, row in evaluation.yardstick_rows(name).items():
            if "outcomes" in row and not (name in subjects and yardstick == evaluation.first_source):
                found[name, yardstick] = Outcomes(**row["outcomes"])
    return found


def corrected_rows(evaluation: Evaluation, name: str, verdicts: Verdicts) -> dict[str, dict[str, Any]]:
    """A policy's figures by yardstick, with p-values and verdicts after the report's correction."""
    better = {str(one["source"]): one.get("better", "higher") for one in evaluation.yardsticks}
    rows = {}
    for yardstick, row in evaluation.yardstick_rows(name).items():
        p_value = verdicts.yardsticks.get((name, yardstick))
        if p_value is None and yardstick == evaluation.first_source and name in verdicts.policies:
            p_value = verdicts.policies[name].p_value
        if "outcomes" in row and p_value is not None:
            row = {**row, **conclusion(row["outcomes"], better[yardstick], p_value)}
        rows[yardstick] = row
    return rows


def _outcome(outcomes: Outcomes, p_value: float) -> str:
    if outcomes.prompts < MANY_PROMPTS:
        return "too few"
    if p_value >= LEVEL:
        return "undecided"
    return "better" if outcomes.wins > outcomes.losses else "worse"


# --- words ---


def headline(
    evaluations: Mapping[str, Evaluation], chains: Mapping[str, Sequence[Link]], kinds: Sequence[str]
) -> dict[str, Any]:
    """The main claim over all evaluations of the report.

    Args:
        evaluations: by a distinguishing name, the report's own first.
        chains: the runs behind each.
    """
    verdicts = {name: one.policies for name, one in find_verdicts(evaluations, chains).items()}
    claims = {name: _claim(verdicts[name], one) for name, one in evaluations.items()}
    first = next(iter(evaluations))
    return {
        "claim": _one_claim(claims),
        "sentences": [
            (f"{where}: " if len(evaluations) > 1 else "") + _sentence(policy, one, evaluations[where])
            for where, found in verdicts.items()
            for policy, one in found.items()
        ],
        "caveats": caveats_of(evaluations, chains, kinds),
        "guards": [
            guard_decision(link.stage, link.manifest["guard"]) for link in _every(chains) if "guard" in link.manifest
        ],
        "verdicts": {policy: one.outcome for policy, one in verdicts[first].items()},
        "claims": claims if len(claims) > 1 else {},
    }


def caveats_of(
    evaluations: Mapping[str, Evaluation], chains: Mapping[str, Sequence[Link]], kinds: Sequence[str]
) -> list[str]:
    """What limits the figures, one sentence each. The arguments are those of `headline`."""
    links = _every(chains)
    return [
        *_caveats(evaluations, kinds),
        *_synthetic_caveats(links),
        *_canary_caveats(evaluations),
        *_reward_caveats(links),
        *_implicit_reward_caveats(links, evaluations, chains),
        *_guard_caveats(links),
    ]


def _every(chains: Mapping[str, Sequence[Link]]) -> list[Link]:
    """The runs of all chains, each once."""
    return list({link.id: link for chain in chains.values() for link in chain}.values())


def _one_claim(claims: Mapping[str, str]) -> str:
    if len(claims) == 1:
        return next(iter(claims.values()))
    if len(set(claims.values())) == 1:
        return f"In each of {len(claims)} evaluations: {next(iter(claims.values()))}"
    return "; ".join(f"in {where}, {claim}" for where, claim in claims.items())


def _claim(verdicts: Mapping[str, Verdict], evaluation: Evaluation) -> str:
    baseline = label(evaluation.baseline)
    phrases = {
        "better": ("wins more often than {}", "win more often than {}"),
        "worse": ("loses more often than it wins against {}", "lose more often than they win against {}"),
        "undecided": ("shows no clear difference from {}", "show no clear difference from {}"),
        "unknown": ("was not compared with {}", "were not compared with {}"),
    }
    clauses = []
    for outcome, (singular, plural) in phrases.items():
        who = [label(name) for name, one in verdicts.items() if one.outcome == outcome]
        if who:
            clauses.append(f"{listed(who)} {(plural if len(who) > 1 else singular).format(baseline)}")
    few = {name: one for name, one in verdicts.items() if one.outcome == "too few"}
    if few:
        n = min(one.outcomes.prompts for one in few.values() if one.outcomes)
        prompts = "1 prompt is" if n == 1 else f"{n} prompts are"
        clauses.append(f"{prompts} too few to compare {listed(map(label, few))} with {baseline}")
    return "; ".join(clauses) or f"Only {baseline} was evaluated"


def _sentence(name: str, one: Verdict, evaluation: Evaluation) -> str:
    if one.outcomes is None:
        return f"{label(name)}: no win rate was measured."
    low, high = one.outcomes.interval
    n = "the 1 held-out prompt" if one.outcomes.prompts == 1 else f"{one.outcomes.prompts} held-out prompts"
    return (
        f"{label(name)} wins {percent(one.outcomes.win_rate)} of {n} against {label(evaluation.baseline)} "
        f"(95% interval {edge(low)} to {edge(high)}{_reading(one, one.outcomes)})."
    )


def _reading(one: Verdict, outcomes: Outcomes) -> str:
    """An interval in words, consistent with the verdict."""
    if one.outcome == "too few":
        more = prompts_missing(outcomes.prompts, one.comparisons)
        shown = percent(SHOWN_WIN_RATE)
        return f"; too few to tell: about {more} more would show a win rate of {shown}, four times in five"
    alone = verdict(outcomes.interval)
    if alone == "undecided":
        return ", which includes an even 50%"
    side = "above" if alone == "better" else "below"
    if one.outcome == "undecided":
        among = f"among {one.comparisons} comparisons: p = {p_value(one.p_value or 0.0)} by Holm's correction"
        return f", {side} an even 50% on its own, but not {among}"
    return f", wholly {side} an even 50%"


def prompts_missing(prompts: int, comparisons: int) -> int:
    """Number of further prompts that would show a win rate of `SHOWN_WIN_RATE`, four times in five."""
    return max(needed_prompts(SHOWN_WIN_RATE, comparisons), MANY_PROMPTS) - prompts


# --- caveats ---


def _caveats(evaluations: Mapping[str, Evaluation], kinds: Sequence[str]) -> list[str]:
    rows = []
    if "simulated" in kinds:
        some = "Part of the" if {"human", "model"} & set(kinds) else "The"
        rows.append(
            f"{some} preferences come from simulated raters, not from people: this shows how far training follows "
            "the raters' written rule, not what people would prefer."
        )
    if "model" in kinds:
        rows.append("Judgments made by a model are among the preferences.")
    if set(kinds) <= {"unstated"}:
        rows.append("The data does not say who judged.")
    n = min(figures.n_prompts for one in evaluations.values() for figures in one.policies.values())
    if n < MANY_PROMPTS:
        rows.append(f"Only {n} prompt{'' if n == 1 else 's'}: a verdict takes {MANY_PROMPTS} at least.")
    return rows


def _synthetic_caveats(links: Sequence[Link]) -> list[str]:
    """Rows that were made, of each training run, and whether people have seen them."""
    rows = []
    for link in links:
        facts = link.manifest.get("synthetic")
        if facts and find_stage(link.stage).trains:
            unseen = facts["rows"] - facts["reviewed"]
            seen = "all of them reviewed" if not unseen else f"{unseen} of them reviewed by nobody (review: none)"
            rows.append(f"{facts['rows']} of the {facts['of']} rows of {link.stage} are synthetic, {seen}.")
    return rows


def _canary_caveats(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Policies that memorised planted facts: they will have memorised real ones too."""
    rows = []
    for where, evaluation in evaluations.items():
        for name, figures in evaluation.policies.items():
            found = (figures.model_extra or {}).get("canaries")
            if found and found["memorised"]:
                who = label(name) if len(evaluations) == 1 else f"{where}: {label(name)}"
                rows.append(
                    f"{who} memorised planted canaries: their exposure is {number(found['exposure_mean'])} bits on average "
                    f"({number(found['exposure_of_chance'])} by chance, p {p_value(found['chance_probability'])}). "
                    "Expect the same of rare facts in the real rows."
                )
    return rows


def _reward_caveats(links: Sequence[Link]) -> list[str]:
    """A reward model not shown to beat chance on held-out preferences invalidates its scores, and PPO's."""
    rows = []
    for link in links:
        metrics = dict(link.manifest.get("metrics") or {})
        interval = metrics.get("held_out_accuracy_interval")
        if find_stage(link.stage).makes == "reward" and interval and interval[0] <= 0.5:
            rows.append(
                f"The reward model{_which(link, links)} is right about {percent(metrics['held_out_accuracy'])} of "
                f"held-out preferences (95% interval {edge(interval[0])} to {edge(interval[1])}, which does not exclude "
                "chance): read its scores with care."
            )
        loss = metrics.get("eval_loss")
        if find_stage(link.stage).makes == "reward" and _above_chance(loss) and _plain_bradley_terry(link):
            rows.append(
                f"The reward model{_which(link, links)}'s loss on held-out preferences is {number(loss)}, above the "
                f"{number(math.log(2))} (ln 2) of chance: it is overconfident."
            )
    return rows


def _implicit_reward_caveats(
    links: Sequence[Link], evaluations: Mapping[str, Evaluation], chains: Mapping[str, Sequence[Link]]
) -> list[str]:
    """Caveats from the held-out preferences of a run that learned implicit rewards."""
    names = {
        link.id: label(policy) if len(evaluations) == 1 else f"{where}: {label(policy)}"
        for where, one in evaluations.items()
        for policy in one.policies
        if (link := Lineage(one, chains[where]).run_of(policy)) is not None
    }
    rows = []
    for link in links:
        if find_stage(link.stage).implicit_rewards:
            name = names.get(link.id) or label(link.stage) + _which(link, links)
            rows += [f"{name}'s {fault}." for fault in (_loss_fault(link), _accuracy_fault(link)) if fault]
    return rows


def _loss_fault(link: Link) -> str:
    loss = (link.manifest.get("metrics") or {}).get("eval_loss")
    config = link.manifest.get("config") or {}
    begins_at_ln_2 = config.get("algorithm", "dpo") == "dpo" and list(config.get("loss_type", ["sigmoid"])) == [
        "sigmoid"
    ]
    if not begins_at_ln_2 or config.get("loss_weights") not in (None, [1.0]) or not _above_chance(loss):
        return ""
    return (
        f"loss on held-out preferences is {number(loss)}, above the {number(math.log(2))} (ln 2) of the policy that it "
        "began with: what it learned does not carry over to them"
    )


def _accuracy_fault(link: Link) -> str:
    metrics, counts = link.manifest.get("metrics") or {}, link.manifest.get("counts") or {}
    accuracy, n = metrics.get("eval_rewards/accuracies"), counts.get("validation")
    if not isinstance(accuracy, (int, float)) or not n:
        return ""
    rows = ((link.manifest.get("config") or {}).get("training") or {}).get("eval_rows")
    n = min(n, rows) if rows else n
    accuracy = min(max(accuracy, 0.0), 1.0)  # a mean of batches, which rounding may push past its limits
    low, high = wilson_interval(accuracy * n, n)
    if low > 0.5:
        return ""
    chance = "includes chance" if high >= 0.5 else "lies below chance"
    return (
        f"implicit rewards are right about {percent(accuracy)} of {n} held-out preferences (95% interval {edge(low)} to "
        f"{edge(high)}, which {chance})"
    )


def _above_chance(loss: object) -> bool:
    return isinstance(loss, (int, float)) and loss > math.log(2) + 5e-4  # beyond the printed digits


def _plain_bradley_terry(link: Link) -> bool:
    """Whether chance has loss ln 2: with margins and soft labels it does not."""
    config = link.manifest.get("config") or {}
    return config.get("strength_as", "margin") != "margin" and not config.get("soft_labels", False)


def _which(link: Link, links: Sequence[Link]) -> str:
    """A run's id, if there are several of its stage."""
    return f" {short(link.id)}" if sum(one.stage == link.stage for one in links) > 1 else ""


def _guard_caveats(links: Sequence[Link]) -> list[str]:
    """A guard trained on the same judgments as the training shares their errors."""
    preferences = {
        link.id: link.manifest["inputs"]["preferences"]["id"]
        for link in links
        if "preferences" in link.manifest["inputs"]
    }
    rows = []
    for link in links:
        inputs = {name: one["id"] for name, one in link.manifest["inputs"].items()}
        rewards = [i for name, i in inputs.items() if name == "reward_model" or name.startswith("rewards.")]
        learned_from = {preferences.get(one) for one in (link.id, *rewards)} - {None}
        if "guard" in link.manifest and preferences.get(inputs.get(GUARD_INPUT, "")) in learned_from:
            name = label(link.stage)
            rows.append(
                f"{name}'s guard learned from the same preferences as {name}'s training: it shares their errors and may "
                "miss what one of another share of the judgments would see."
            )
    return rows


def guard_decision(stage: str, guard: Mapping[str, Any]) -> str:
    """The checkpoint that a guard kept, and why training ended, in words (preference/policy/overoptimisation.py)."""
    name, kept, first, last = label(stage), guard["kept"], guard["history"][0], guard["history"][-1]
    sentence = (
        f"{name} was guarded by a reward model that its training did not see, which scored the answers to "
        f"{number(guard['prompts'])} validation prompts at {len(guard['history'])} steps."
    )
    if kept["step"] == first["step"]:
        sentence += f" It scored no policy higher than the initial one, so {name} is the initial policy, unchanged."
    else:
        liked = "the last policy" if kept["step"] == last["step"] else "the policy"
        sentence += (
            f" It scored {liked} of step {number(kept['step'])} highest, which was kept: its score rose from "
            f"{number(first['score'])} to {number(kept['score'])}, at a KL of {number(kept['kl'])} nats per answer."
        )
    if guard["stopped_at_step"] is None:
        return f"{sentence} Training ran to its end, step {number(last['step'])}."
    times = "once" if guard["patience"] == 1 else f"{guard['patience']} times in a row"
    return (
        f"{sentence} Training was stopped at step {number(guard['stopped_at_step'])}: that score had fallen {times}, to "
        f"{number(last['score'])}, while the training score rose."
    )
