"""Simulated raters: they judge by a yardstick, with errors at a stated rate, through the same store as people.

With them, the whole pipeline runs without people. Everything made from their judgments is marked `simulated`, and they
never share a store with people.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

from labeling_ui.configuration import SimulateConfig
from labeling_ui.database.errors import RefusedError
from labeling_ui.programs import judge_all
from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store
from labeling_ui.store.work.assigning import Assignment
from tiebreak.measures.yardstick import Yardstick, find_yardstick, shortened
from tiebreak.messages import content_id


def simulate(store: Store, config: SimulateConfig, beside: Path | None = None) -> int:
    """Let the raters judge all pairs; returns how many judgments they added.

    Args:
        beside: the configuration file's folder, where the yardstick may be.

    Raises:
        StoreError: people judge in this store.
        ConfigError: there is no such yardstick.
        HandoffError: the yardstick fails, or returns no finite number.
    """
    rater = SimulatedRater(config, find_yardstick(config.yardstick, beside))
    names = [f"simulated-{number}" for number in range(config.raters)]
    return judge_all(store, "simulated", names, rater.judge, "simulated judgments")


class SimulatedRater:
    """Answers by a yardstick, with errors at the stated rate."""

    def __init__(self, config: SimulateConfig, yardstick: Yardstick) -> None:
        self.config, self.step = config, config.strength_step
        self.measure = lru_cache(maxsize=100_000)(
            lambda prompt, answer: yardstick.measure(prompt, answer, f"the answer {shortened(answer)!r}").value
        )

    def judge(self, assignment: Assignment) -> Submission:
        """A rater's answer about the sides as shown. Seed, rater and item alone decide whether it is an error."""
        prompt = assignment.pair.messages[-1].text
        texts = {completion.id: completion.text for completion in assignment.pair.completions}
        answer = self.answer(prompt, texts[assignment.left_id], texts[assignment.right_id])
        chance = random.Random(content_id("simulated", self.config.seed, assignment.rater_id, assignment.item_id))
        if chance.random() < self.config.error_rate:
            # An error is the other side; for a tie, either side, chosen by id, not by the sides shown.
            first = min(assignment.left_id, assignment.right_id) == assignment.left_id
            answer = -answer if answer else (1 if (chance.random() < 0.5) == first else -1)
        return Submission(client_id=content_id("simulated", assignment.id), pair_id=assignment.item_id, answer=answer)

    def answer(self, prompt: str, left: str, right: str) -> int:
        """−3 … +3 from the difference of the yardstick's values, one step per `strength_step`."""
        difference = self.measure(prompt, right) - self.measure(prompt, left)
        if abs(difference) <= self.config.tie_threshold:
            return 0
        strength = min(3, max(1, round(abs(difference) / self.step)))
        return strength if difference > 0 else -strength


def refuse_people(store: Store) -> None:
    """Refuse to mix simulated judgments into people's store.

    Raises:
        RefusedError: the store has people.
    """
    people = [rater for rater in store.raters() if rater.kind == "human"]
    if people:
        raise RefusedError(
            f"{store.url} has {len(people)} raters who are not simulated: simulated judgments need their own store. "
            "Give another --store, or leave --simulate out"
        )
