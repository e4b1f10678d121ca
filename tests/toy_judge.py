"""A judge in one module, as somebody would add it: a stage whose rater prefers the longer answer."""

from __future__ import annotations

from collections.abc import Sequence

from labeling_ui.exchange.export import export
from labeling_ui.programs import judge_all
from labeling_ui.quality.aggregate import AggregationConfig
from labeling_ui.store.answers import Submission
from labeling_ui.store.store import Store, default_store_url
from labeling_ui.store.work.assigning import Assignment
from tiebreak.command.launch import stage_main
from tiebreak.config import StageConfig
from tiebreak.data.pairs import read_pairs
from tiebreak.runs.run import identify_input, start_run
from tiebreak.stages import Stage
from tiebreak.terminal import say
from tiebreak.tracking.recorder import tracked

JUDGE = Stage(
    "longest",
    "toy_judge",
    "judge pairs by the length of their answers",
    "toy_judge:JudgeConfig",
    makes="data",
    inputs={"pairs": "pairs"},
    rows=("judgments", "preferences"),
)


class JudgeConfig(StageConfig):
    """`tiebreak longest`"""

    pairs: str
    """what to judge: a sample run, or a file of pairs"""


def prefer_longer(assignment: Assignment) -> Submission:
    """The longer answer is better."""
    lengths = {one.id: len(one.text) for one in assignment.pair.completions}
    longer = lengths[assignment.right_id] - lengths[assignment.left_id]
    answer = 2 if longer > 0 else -2 if longer < 0 else 0
    return Submission(client_id=assignment.id, pair_id=assignment.item_id, answer=answer)


def judge(config: JudgeConfig) -> None:
    """The stage."""
    pairs = read_pairs(config.pairs, stage="longest")
    with start_run(config, "longest") as run, tracked(run):
        if run.finished:
            say(f"{run.folder} is already finished: nothing to do")
            return
        store = Store.open(default_store_url(run.folder / "store" / "labels.sqlite"), create=True)
        source = identify_input(config.pairs).id
        store.add_pairs(pairs, overlap=1, seed=0, source=config.pairs, source_id=source)
        judge_all(store, "model", ["length"], prefer_longer, "judgments")
        export(store, run, AggregationConfig())
        store.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak longest`"""
    stage_main("longest", JudgeConfig, judge, arguments)
