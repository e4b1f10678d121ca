"""Raters that are programs: they take pairs from a label store and judge them, as people do.

A judge is a function of an assignment, as in `labeling_ui.simulate`; tests/toy_judge.py is one with a stage of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from labeling_ui.store.answers import Submission
from labeling_ui.store.raters import RaterKind
from labeling_ui.store.store import Store
from labeling_ui.store.work.assigning import Assignment
from tiebreak.terminal.progress import progress


def judge_all(
    store: Store, kind: RaterKind, names: Sequence[str], judge: Callable[[Assignment], Submission], title: str
) -> int:
    """Let raters of these names judge all pairs, by turns; returns how many judgments they added.

    Interrupted and run again, it ends with the same store as an uninterrupted run: the turns follow from the store.

    Args:
        title: of the progress bar.

    Raises:
        StoreError: the store has raters whose judgments must not mix with those of this kind.
    """
    raters = [store.add_rater(name, kind=kind, rater_id=name) for name in names]
    done = {rater.id: store.judged_by(rater.id) for rater in raters}
    total = store.status()["judgments_wanted"]
    added = 0
    working = [rater.id for rater in raters]
    with progress(total, title) as bar:
        bar.skip_to(sum(done.values()))
        while working:
            rater_id = min(working, key=lambda rater_id: (done[rater_id], working.index(rater_id)))
            assignment = store.claim(rater_id)
            if assignment is None:
                working.remove(rater_id)
                continue
            store.submit(rater_id, judge(assignment))
            done[rater_id] += 1
            added += 1
            bar.advance()
    return added
