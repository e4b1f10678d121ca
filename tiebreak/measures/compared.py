"""Judgments as a yardstick: how often raters prefer one policy's answer to the baseline's.

    yardsticks: [rubric, "judge:runs/judge-test", "people:runs/label-test"]

An evaluation writes the pairs of its answers, policy against baseline; judges and people judge them like any pairs; a
second evaluation, with this yardstick added, reads the judgments. Equal and empty answers are not judged.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from tiebreak.measures.judges import side_of
from tiebreak.messages import content_id
from tiebreak.records import Completion, Judgment, Pair, Prompt

Won = Mapping[frozenset[str], tuple[str, float]]
"""two completions → (one of them, the share of the judgments that it won, a tie being half a win)"""


def answer_id(prompt: Prompt, policy: str, text: str) -> str:
    """The id of a policy's answer to a held-out prompt.

    Args:
        policy: the policy's id, by content.
    """
    return content_id("completion", "evaluate", prompt.id, policy, text)


def pairs_of(
    drawn: Sequence[Prompt], own: Sequence[str], baseline: Sequence[str], policies: tuple[str, str]
) -> list[Pair]:
    """A pair for each prompt and sample whose two answers differ and are not empty.

    Args:
        drawn: the prompt of each answer.
        own: the policy's answers.
        policies: the ids of the policy and the baseline.
    """
    found: dict[str, Pair] = {}
    for prompt, *texts in zip(drawn, own, baseline, strict=True):
        if len({text.strip() for text in texts}) < 2 or not all(text.strip() for text in texts):
            continue
        completions = tuple(
            Completion(id=answer_id(prompt, policy, text), text=text, policy=policy)
            for policy, text in zip(policies, texts, strict=True)
        )
        identity = content_id("pair", prompt.id, *sorted(one.id for one in completions))
        found[identity] = Pair(
            id=identity,
            prompt_id=prompt.id,
            messages=prompt.messages,
            completions=completions,
            split="test",  # evaluation judgments never reach training
            tools=prompt.tools,
        )
    return list(found.values())


def shares_won(judgments: Iterable[Judgment]) -> dict[frozenset[str], tuple[str, float]]:
    """What judgments say of every two completions; a rater's first judgment of them counts, and both bad is a tie."""
    votes: dict[frozenset[str], dict[str, tuple[str, float]]] = {}
    for judgment in judgments:
        for one in judgment.pairwise():
            if (side := side_of(one)) is None:
                continue
            first = min(one.left, one.right)
            votes.setdefault(frozenset((one.left, one.right)), {}).setdefault(one.rater_id, (first, (1 + side) / 2))
    return {
        both: (next(iter(by_rater.values()))[0], statistics.fmean(value for _, value in by_rater.values()))
        for both, by_rater in votes.items()
    }


def share_against(won: Won, own: str, other: str) -> float | None:
    """The share of the judgments of two completions that `own` won; None if nobody judged them.

    >>> share_against({frozenset(("a", "b")): ("a", 0.75)}, "b", "a")
    0.25
    """
    found = won.get(frozenset((own, other)))
    if found is None:
        return None
    first, share = found
    return share if first == own else 1 - share


def share_unasked(own: str, other: str) -> float | None:
    """The share of two answers that nobody has to judge: equal ones are a tie, and an empty one loses; None of others.

    >>> share_unasked("Water.", "Water. "), share_unasked("", "Water."), share_unasked("Water.", " ")
    (0.5, 0.0, 1.0)
    >>> share_unasked("Water.", "Iron.")
    """
    mine, theirs = own.strip(), other.strip()
    if mine == theirs:
        return 0.5
    return None if mine and theirs else float(bool(mine))
