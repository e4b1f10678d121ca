"""Selection of prompts that the report shows side by side, and their orders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.compare.lineage import Lineage
from evaluation.compare.reading import Answer, Evaluation
from tiebreak.messages import Message


@dataclass(frozen=True)
class Sample:
    """One prompt with every policy's answer.

    `change` is the yardstick's difference from the policy that `policy` was trained from.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    answers: dict[str, Answer]
    change: dict[str, float]
    place: int
    """position in an order that depends only on the prompt: the report's random order"""


def select_samples(evaluation: Evaluation, lineage: Lineage, most: int) -> list[Sample]:
    """At most `most` prompts in random order: alternately a policy's largest gain, its largest loss and a random one.

    Losses are chosen as often as gains, so that the selection does not flatter the last policy.
    """
    origins = {name: origin.policy for name in evaluation.policies if (origin := lineage.origin_of(name))}
    everyone = _samples(evaluation, origins)
    queues: list[list[Sample]] = [everyone]
    for name in origins:
        queues.append(sorted(everyone, key=lambda s: (-s.change[name], s.place)))
        queues.append(sorted(everyone, key=lambda s: (s.change[name], s.place)))
    taken: dict[str, Sample] = {}
    for turn in range(len(everyone)):
        for queue in queues:
            if len(taken) < most:
                taken.setdefault(queue[turn].prompt_id, queue[turn])
    return sorted(taken.values(), key=lambda s: s.place)


def _samples(evaluation: Evaluation, origins: Mapping[str, str]) -> list[Sample]:
    by_prompt: dict[str, dict[str, Answer]] = {}
    for answer in evaluation.answers:
        by_prompt.setdefault(answer.prompt_id, {}).setdefault(answer.policy, answer)
    scores = {name: evaluation.per_prompt(name) for name in evaluation.policies}
    shuffled = sorted(by_prompt, key=lambda prompt: hashlib.sha256(prompt.encode()).hexdigest())
    samples = []
    for place, prompt in enumerate(shuffled):
        answers = {name: by_prompt[prompt][name] for name in evaluation.policies}
        change = {name: scores[name][prompt] - scores[origin][prompt] for name, origin in origins.items()}
        samples.append(Sample(prompt, next(iter(answers.values())).messages, answers, change, place))
    return samples


def missed(answer: Answer) -> Sequence[str]:
    """Names of the criteria that an answer fails."""
    return [name for name, met in answer.rubric.items() if not met]
