"""Simulated raters: they judge by the written rubric, with errors at a stated rate, through the same store as people.

They exist so that the whole pipeline can be run and tested without people. Whatever comes of their judgments says
`simulated` to the last report, and they never share a store with people.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import ClassVar

from pydantic import Field, field_validator

from labeling_ui.store.answers import Submission
from labeling_ui.store.assigning import Assignment, RefusedError
from labeling_ui.store.store import Store
from tiebreak.config import Section
from tiebreak.records import content_id
from tiebreak.rubric import score_rubric
from tiebreak.terminal import progress

STEP = 1 / 6
"""One criterion of the rubric: the difference that makes a side slightly better."""


class SimulateConfig(Section):
    """Raters that are not people."""

    switch: ClassVar[str | None] = "enabled"
    enabled: bool = True
    """false: people judge, and the rest of this section is not used"""
    raters: int = Field(default=3, ge=1, le=1000)
    """how many of them"""
    error_rate: float = Field(default=0.1, ge=0.0, le=1.0)
    """share of the judgments that come out wrong: the other side, or a side where there is none"""
    tie_threshold: float = Field(default=0.08, ge=0.0, le=1.0)
    """differences of the rubric's score (0 to 1, in steps of 1/6) up to this are ties"""
    seed: int = Field(default=0, ge=0)
    """decides, with the rater and the pair, which judgments come out wrong"""

    @field_validator("tie_threshold")
    @classmethod
    def _tells_apart(cls, value: float) -> float:
        if value >= 1.0:
            raise ValueError("every judgment would be a tie; give less than 1")
        return value


def simulate(store: Store, config: SimulateConfig) -> int:
    """Let the raters judge all there is; returns how many judgments they added.

    Cut off and run again, it goes on to the same store as an uncut run: whose turn it is follows from what is in the
    store.

    Raises:
        StoreError: the store is one of people.
    """
    raters = [
        store.add_rater(f"simulated-{n}", kind="simulated", rater_id=f"simulated-{n}") for n in range(config.raters)
    ]
    done = {rater.id: store.progress(rater.id).done for rater in raters}
    status = store.status()
    total = status["judgments_wanted"]
    added = 0
    working = [rater.id for rater in raters]
    with progress(total, "simulated judgments") as bar:
        bar.update(sum(done.values()))
        while working:
            rater_id = min(working, key=lambda one: (done[one], working.index(one)))
            assignment = store.claim(rater_id)
            if assignment is None:
                working.remove(rater_id)
                continue
            store.submit(rater_id, judge(assignment, config))
            done[rater_id] += 1
            added += 1
            bar.update(1)
    return added


def judge(assignment: Assignment, config: SimulateConfig) -> Submission:
    """The rater's answer about the sides as shown. Right or wrong is decided by the seed, the rater and the item
    alone."""
    texts = {completion.id: completion.text for completion in assignment.pair.completions}
    answer = rubric_answer(texts[assignment.left_id], texts[assignment.right_id], config.tie_threshold)
    chance = random.Random(content_id("simulated", config.seed, assignment.rater_id, assignment.item_id))
    if chance.random() < config.error_rate:
        # A wrong rater prefers the other side; of two equal ones, some side, named by id so that the sides do not
        # matter.
        first = min(assignment.left_id, assignment.right_id) == assignment.left_id
        answer = -answer if answer else (1 if (chance.random() < 0.5) == first else -1)
    return Submission(client_id=content_id("simulated", assignment.id), pair_id=assignment.item_id, answer=answer)


def rubric_answer(left: str, right: str, tie_threshold: float) -> int:
    """−3 … +3 from the difference of the rubric's scores: a step an answer, three steps or more being `much better`."""
    difference = _score(right) - _score(left)
    if abs(difference) <= tie_threshold:
        return 0
    strength = min(3, max(1, round(abs(difference) / STEP)))
    return strength if difference > 0 else -strength


@lru_cache(maxsize=100_000)
def _score(text: str) -> float:
    return score_rubric(text).score


def refuse_people(store: Store) -> None:
    """Stop before people's judgments and simulated ones share a store.

    Raises:
        RefusedError: there are raters in the store who are not simulated.
    """
    people = [rater for rater in store.raters() if rater.kind != "simulated"]
    if people:
        raise RefusedError(
            f"{store.url} holds {len(people)} rater(s) who are not simulated: simulated judgments never go "
            "into the same store. Give another --store, or leave --simulate out"
        )
