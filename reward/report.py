"""A reward model's report, written after training and again, on any preferences, by command.

    tiebreak reward report --reward-model runs/quickstart/reward --output runs/quickstart/reward-report
    tiebreak reward report --reward-model runs/quickstart/reward --preferences more.jsonl --output runs/more-report

Writes into its run folder `report.json`, for programs, and `report.html`, for people: one file that opens without a
network. All figures are from preferences whose prompts the model was not trained on.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.configuration import RewardReportConfig
from reward.examples import EncodedPreference, encode, prompt_keys
from reward.garbage import Garbage, make_garbage
from reward.measures import ScoredGarbage, ScoredPair, build_figures, headline
from reward.page import build_page
from reward.provenance import Origin, trace_origin
from tiebreak.chat.chat import Chat
from tiebreak.command.launch import stage_main
from tiebreak.config import TrainingConfig
from tiebreak.data.reading import Rules, read_preferences
from tiebreak.data.splits import partition
from tiebreak.errors import DataError, HandoffError
from tiebreak.explain.pairs import Pull
from tiebreak.files import read_jsonl, write_json, write_jsonl, write_text_atomically
from tiebreak.hashing import hash_text
from tiebreak.records import Preference
from tiebreak.runs.chain import InputFinder
from tiebreak.runs.run import Run, read_manifest, start_run, that_drops
from tiebreak.terminal import say
from tiebreak.tracking.recorder import tracked
from tiebreak.training.labels import is_tie

SCORES = "validation_scores.jsonl"
"""The scores of each held-out pair, in a run's `final/`."""
PULLS, MOST_PULLS = "pulls.jsonl", 10
"""The pull of each training pair, in a report's `final/`, and the number of those that the page shows."""
TRAINED_PROMPTS = "trained_prompts.json"
"""Ids of the prompts that a reward model was trained on, in its `final/`."""


@dataclass(frozen=True)
class Exam:
    """Inputs for a reward model's examination: held-out pairs, adversarial answers, and samples of a policy."""

    examples: list[EncodedPreference]
    garbage: list[Garbage]
    samples: list[list[int]]
    """prompt and completion"""

    def sequences(self) -> list[list[int]]:
        """The sequences that the scale is measured on, in the order that `mark` expects."""
        return [*(e.prompt + side for e in self.examples for side in (e.chosen, e.rejected)), *self.samples]

    def garbage_sequences(self) -> list[list[int]]:
        """The sequences that only the report needs."""
        return [one.ids for one in self.garbage]

    def mark(self, scores: Sequence[Sequence[float]], garbage: Sequence[Sequence[float]] = ()) -> ScoredExam:
        """Assign the scores of `sequences()`, each a list over the members.

        Args:
            garbage: those of `garbage_sequences()`; none: adversarial answers are not scored.

        Raises:
            HandoffError: a score is not a finite number.
        """
        everything = [*scores, *garbage]
        broken = sum(not math.isfinite(score) for members in everything for score in members)
        if broken:
            raise HandoffError(
                f"the reward model gives {broken} of {sum(map(len, everything))} scores that are not finite numbers, so "
                "nothing can be measured or trained with it: lower training.learning_rate and train it again; its "
                "checkpoints are kept"
            )
        rows = [tuple(members) for members in scores]
        sides, samples = rows[: 2 * len(self.examples)], rows[2 * len(self.examples) :]
        pairs = [ScoredPair(*of) for of in zip(self.examples, sides[0::2], sides[1::2], strict=True)]
        by_example = {id(pair.example): pair for pair in pairs}
        made = [
            ScoredGarbage(one, statistics.fmean(members), by_example[id(one.of)])
            for one, members in zip(self.garbage if garbage else [], garbage, strict=True)
        ]
        return ScoredExam(pairs, made, samples)


@dataclass(frozen=True)
class ScoredExam:
    """An exam with its scores."""

    pairs: list[ScoredPair]
    garbage: list[ScoredGarbage]
    samples: list[tuple[float, ...]]


def build_exam(
    preferences: Sequence[Preference],
    chat: Chat,
    garbage_prompts: int,
    max_length_tokens: int,
    samples: Sequence[list[int]] = (),
    dropping: Run | None = None,
) -> Exam:
    """An exam on held-out preferences; ties, which no answer gets right, and over-long ones are left out."""
    decided = [preference for preference in preferences if not is_tie(preference)]
    if len(decided) < len(preferences):
        say(f"{len(preferences) - len(decided)} of {len(preferences)} held-out preferences are ties: not examined")
    examples = encode(decided, chat, max_length_tokens, dropping)
    garbage = make_garbage(examples, chat, garbage_prompts, max_length_tokens)
    return Exam(examples, garbage, list(samples))


def write_scores(run: Run, marked: ScoredExam) -> None:
    """Write the scores of each pair."""
    write_jsonl(run.final / SCORES, [_scores_row(pair) for pair in marked.pairs])


def read_scores(final: Path) -> list[list[float]]:
    """The scores of each pair, as `Exam.mark` takes them."""
    rows = list(read_jsonl(final / SCORES))
    return [row.get(f"{side}_members", [row[side]]) for row in rows for side in ("chosen", "rejected")]


def write_report(
    run: Run, marked: ScoredExam, origin: Origin, reward_model: str, further: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write `report.json` and `report.html`; returns the report.

    Args:
        further: additional entries.

    Files in `final/` name no folder, so that equal runs write equal bytes.
    """
    figures = build_figures(marked.pairs, marked.garbage, origin)
    report = {"headline": headline(figures), **figures, **(further or {})}
    write_json(run.final / "report.json", report)
    write_json(run.folder / "report.json", report)
    made_from = {name: one.source for name, one in run.inputs.items()} | {"reward_model": reward_model}
    write_text_atomically(run.folder / "report.html", build_page(report, made_from))
    say(
        f"{report['headline']['claim']}.",
        *report["headline"]["caveats"],
        f"report: {(run.folder / 'report.html').resolve().as_uri()}",
    )
    return report


def _scores_row(pair: ScoredPair) -> dict[str, Any]:
    source = pair.example.source
    return {
        "prompt_id": source.prompt_id,
        "pair_id": source.pair_id,
        "chosen": statistics.fmean(pair.chosen),
        "rejected": statistics.fmean(pair.rejected),
        **({"chosen_members": pair.chosen, "rejected_members": pair.rejected} if len(pair.chosen) > 1 else {}),
    }


def report_metrics(report: dict[str, Any]) -> dict[str, Any]:
    """The manifest's figures for the recipe's own report."""
    after = report["calibration"]["after"]
    kept = ("accuracy", "accuracy_interval", "n", "length_baseline", "score_mean", "score_std")
    figures = {key: report[key] for key in kept} | {"ece": report["calibration"]["before"]["ece"]}
    figures |= {"ece_calibrated": after["ece"]} if after else {}
    return {f"held_out_{key}": value for key, value in figures.items()}


# --- the command ---


def report(config: RewardReportConfig) -> None:
    """The command: score held-out preferences with a finished reward model, and write the report."""
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_trained_reward_model
    from tiebreak.models.tokenizers import load_chat
    from tiebreak.packed.logprobs import member_scores_in_batches

    source = find_model(config.reward_model, "reward", config.trust_remote_code)
    if source.probed is None:
        raise HandoffError(f"{config.reward_model} is a base model: give the folder of a finished reward run")
    preferences = config.preferences or _own_preferences(config.reward_model)
    inputs = {"reward_model": config.reward_model, "preferences": preferences}
    with start_run(config, "reward report", inputs) as run, tracked(run):
        if run.finished:
            say(f"{run.folder} holds this very report already: nothing to do")
            return
        trained = read_manifest(config.reward_model)["config"]
        training = TrainingConfig.model_validate(trained["training"])
        chat = load_chat(source)
        if config.preferences is None:
            rules = Rules(
                trained.get("columns", {}),
                trained.get("on_bad_row", "refuse"),
                trained["validation_share"],
                stage="reward report",
            )
            held_out = partition(read_preferences(preferences, rules), lambda one: one.split)[1]
        else:
            held_out = not_trained_on(read_preferences(preferences, Rules.of(run)), source.probed)
        if not held_out:
            raise DataError(f"{preferences} has no preference whose prompt {config.reward_model} was not trained on")
        dropping = run if trained.get("on_bad_row") == "drop" else that_drops(run)
        exam = build_exam(held_out, chat, config.garbage_prompts, training.max_length_tokens, dropping=dropping)
        asked, garbage = exam.sequences(), exam.garbage_sequences()
        say(f"scoring {len(asked) + len(garbage)} answers with {config.reward_model}")
        model = load_trained_reward_model(source, training)
        scores = member_scores_in_batches(model, asked + garbage, chat.pad_id, config.batch_size)
        marked = exam.mark(scores[: len(asked)], scores[len(asked) :])
        write_scores(run, marked)
        further = against_the_rest(run, config, chat, model) if config.influence_pairs else {}
        written = write_report(run, marked, trace_origin(preferences), config.reward_model, further)
        run.facts |= {"metrics": report_metrics(written), "kinds": written["kinds"]}
        run.finish()


def against_the_rest(run: Run, config: RewardReportConfig, chat: Chat, model: Any) -> dict[str, Any]:
    """The report's entry of training pairs that pull against the rest; the pull of every pair goes into `PULLS`."""
    from tiebreak.explain.pairs import pulls_of

    pulls, of = pulls_of(config.reward_model, chat, model, config.influence_pairs)
    write_jsonl(run.final / PULLS, [_pull_row(one) for one in pulls])
    rows = [
        {
            "pair_id": one.pair.pair_id,
            "raters": one.pair.raters,
            "pull": one.pull,
            "prompt": [{"role": turn.role, "content": turn.text} for turn in one.pair.prompt],
            "chosen": one.pair.chosen_text,
            "rejected": one.pair.rejected_text,
        }
        for one in pulls[:MOST_PULLS]
        if one.pull < 0
    ]
    return {
        "against_the_rest": {"pairs": len(pulls), "of": of, "against": sum(p.pull < 0 for p in pulls), "rows": rows}
    }


def _pull_row(one: Pull) -> dict[str, Any]:
    """A row of `PULLS`; the label server finds the raters who chose an answer by the hash of its text."""
    pair = one.pair
    return {
        "pair_id": pair.pair_id,
        "raters": pair.raters,
        "pull": round(one.pull, 4),
        "chosen": hash_text(pair.chosen_text),
        "adjudicated": pair.adjudicated,
    }


def _own_preferences(reward_model: str) -> str:
    """The place of the preferences that a reward model was made from.

    Raises:
        HandoffError: they have changed.
    """
    manifest = read_manifest(reward_model)
    made_from = manifest["inputs"]["preferences"]
    found = InputFinder().find(reward_model, manifest, made_from)
    if found.state in ("changed", "gone"):
        raise HandoffError(
            f"{made_from['source']} no longer holds the preferences that {reward_model} was made from: name others with "
            "--preferences"
        )
    return found.place or str(made_from["source"])


def not_trained_on(preferences: Sequence[Preference], final: Path) -> list[Preference]:
    """Other preferences whose prompts the reward model was not trained on."""
    path = final / TRAINED_PROMPTS
    if not path.is_file():
        raise HandoffError(
            f"{final} has no {TRAINED_PROMPTS}, so its training prompts are unknown: train it again with this version"
        )
    seen = set(json.loads(path.read_text()))
    kept = [preference for preference in preferences if seen.isdisjoint(prompt_keys(preference))]
    if len(kept) < len(preferences):
        say(
            f"{len(preferences) - len(kept)} of {len(preferences)} preferences have prompts it was trained on: left out"
        )
    return kept


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak reward report`, or `python -m reward.report`."""
    stage_main("reward report", RewardReportConfig, report, arguments)


if __name__ == "__main__":
    main()
