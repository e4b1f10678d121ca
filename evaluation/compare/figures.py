"""From finished run folders to the figures of the report: reading, checking, and the arithmetic.

Nothing here draws. What comes out is `report.json`: everything in it but the key `timings` depends on what was run and
not on when, where or how fast, so two runs of one recipe give the same figures, byte for byte.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tiebreak import runs
from tiebreak.errors import HandoffError, RunError
from tiebreak.page.numbers import number, percent, short
from tiebreak.records import Message, explain, read_rows
from tiebreak.statistics import Interval, bootstrap_interval

DATA_FILES = ("prompts", "demonstrations", "pairs", "judgments", "preferences")
TIMING_WORDS = ("seconds", "runtime", "per_second", "flos", "memory")
GUARD_INPUT = "guard.reward_model"
MANY_PROMPTS = 30
"""Below this many prompts a percentile bootstrap is too narrow to be read as 95% (Hesterberg 2015, section 4)."""


class PolicyFigures(BaseModel):
    """One policy's row of evaluate's report. Further fields are kept and passed on."""

    model_config = ConfigDict(frozen=True, extra="allow")

    rubric_mean: float
    rubric_interval: Interval
    criteria: dict[str, float] = {}
    win_rate_vs_sft: float | None = None
    win_rate_interval: Interval | None = None
    score_mean: float | None = None
    score_interval: Interval | None = None
    kl_per_sequence: float | None = None
    kl_per_token: float | None = None
    length_tokens_mean: float
    unfinished_share: float | None = None
    repetition_mean: float | None = None
    n_prompts: int
    source: str = ""
    id: str = ""


class Answer(BaseModel):
    """One row of evaluate's completions.jsonl."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt_id: str
    messages: tuple[Message, ...]
    policy: str
    text: str
    finished: bool = True
    rubric: dict[str, bool] = {}
    rubric_score: float
    score: float | None = None
    kl: float | None = None
    length_tokens: int


@dataclass(frozen=True)
class Evaluation:
    """A finished *evaluate* run, read and checked."""

    folder: str
    manifest: dict[str, Any]
    policies: dict[str, PolicyFigures]
    baseline: str
    yardstick: str
    sampling: dict[str, Any]
    kinds: tuple[str, ...]
    answers: tuple[Answer, ...]

    @property
    def prompt_ids(self) -> frozenset[str]:
        return frozenset(answer.prompt_id for answer in self.answers)

    def per_prompt(self, policy: str) -> dict[str, float]:
        """Rubric score by prompt; the mean where a prompt was answered more than once."""
        scores: dict[str, list[float]] = {}
        for answer in self.answers:
            if answer.policy == policy:
                scores.setdefault(answer.prompt_id, []).append(answer.rubric_score)
        return {prompt: math.fsum(values) / len(values) for prompt, values in scores.items()}


@dataclass(frozen=True)
class Link:
    """One finished run that the evaluation was made from, or that the user added."""

    folder: str
    manifest: dict[str, Any]

    @property
    def stage(self) -> str:
        return str(self.manifest["stage"])

    @property
    def id(self) -> str:
        return str(self.manifest["id"])


# --- reading ---


def read_evaluation(folder: str) -> Evaluation:
    """A finished *evaluate* run.

    Raises:
        RunError: there is no such folder, or it is not finished.
        HandoffError: it is another stage's, its files are not those it finished with, or they lack what is needed.
    """
    manifest = _evaluate_manifest(folder)
    for name in ("report.json", "completions.jsonl"):
        _verify_output(folder, manifest, f"final/{name}")
    try:
        report = _finite(json.loads((Path(folder) / "final" / "report.json").read_text(encoding="utf-8")))
        policies = {str(name): PolicyFigures.model_validate(row) for name, row in report["policies"].items()}
        answers = tuple(Answer.model_validate(_finite(row)) for _, row in read_rows(folder, "completions.jsonl"))
    except ValidationError as error:
        raise _unreadable(folder, "; ".join(list(explain(error))[:5])) from error
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise _unreadable(folder, f"{type(error).__name__}: {error}") from error
    evaluation = Evaluation(
        folder=folder,
        manifest=manifest,
        policies=policies,
        baseline=str(report.get("baseline", "sft")),
        yardstick=str(report.get("yardstick", "rubric")),
        sampling=dict(report.get("sampling") or {}),
        kinds=kinds_of(report),
        answers=answers,
    )
    _check_prompts(evaluation)
    return evaluation


def _evaluate_manifest(folder: str) -> dict[str, Any]:
    if not Path(folder).is_dir():
        raise RunError(f"no such run folder: {folder}; run 'tiebreak evaluate --config FILE' first, or mend the path")
    runs.identify_input(folder)  # names the command that would finish a cut-off run
    manifest = runs.read_manifest(folder)
    if manifest["stage"] != "evaluate":
        raise HandoffError(
            f"{folder} is a finished '{manifest['stage']}' run: compare reads the folder of an 'evaluate' run; "
            "give that with --evaluation"
        )
    return manifest


def _verify_output(folder: str, manifest: Mapping[str, Any], name: str) -> None:
    path, recorded = Path(folder) / name, manifest.get("outputs", {}).get(name)
    if recorded is None or not path.is_file():
        raise HandoffError(f"{folder} is finished, but holds no {name}: run 'tiebreak evaluate' into a new folder")
    if runs.hash_file(path) != recorded:
        raise HandoffError(
            f"{path} is not the file that the run finished with (its hash differs from the manifest's): "
            "run 'tiebreak evaluate' into a new folder"
        )


def _unreadable(folder: str, reason: str) -> HandoffError:
    return HandoffError(
        f"{folder}/final does not hold what compare reads: {reason}; run 'tiebreak evaluate' into a new folder"
    )


def _check_prompts(evaluation: Evaluation) -> None:
    """Figures of one table must rest on one set of prompts."""
    if not evaluation.policies or not evaluation.answers:
        raise HandoffError(f"{evaluation.folder} evaluated nothing: there is nothing to compare")
    everything = evaluation.prompt_ids
    for name in evaluation.policies:
        missing = everything - set(evaluation.per_prompt(name))
        if missing:
            raise HandoffError(
                f"{evaluation.folder}: policy '{name}' has no completion for {len(missing)} of {len(everything)} "
                f"prompts (first: {min(missing)}): its figures cannot stand beside the others'; evaluate again"
            )


def _finite(value: Any) -> Any:
    """JSON with NaN and infinities as null: a browser's JSON reader refuses them."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_chain(evaluation: str, further: Sequence[str] = ()) -> list[Link]:
    """The evaluation, all it was made from, and the `further` runs: inputs first, each once.

    Raises:
        RunError: a further run is not finished.
        HandoffError: a folder now holds another run than the one that was used.
    """
    links: dict[str, Link] = {}
    for folder in (*further, evaluation):
        if not Path(folder).is_dir():
            raise RunError(f"no such run folder: {folder}; mend the path in 'runs'")
        runs.identify_input(folder)
        for where, manifest in runs.manifest_chain(folder):
            links.setdefault(str(manifest["id"]), Link(str(where), manifest))
    for link in links.values():
        _check_inputs(link)
    return list(links.values())


def _check_inputs(link: Link) -> None:
    for name, one in link.manifest["inputs"].items():
        if one["kind"] == "run" and Path(one["source"]).is_dir():
            now = runs.read_manifest(one["source"])["id"]
            if now != one["id"]:
                raise HandoffError(
                    f"{one['source']} now holds another run ({short(now)}) than the one that {link.folder} was made "
                    f"from ({short(one['id'])}, its '{name}'): run 'tiebreak {link.stage}' again"
                )


# --- figures ---


def build_report(
    evaluation: Evaluation, links: Sequence[Link], against: Sequence[Evaluation], title: str
) -> dict[str, Any]:
    """Everything that `report.json` says."""
    kinds = sorted({*evaluation.kinds, *(kind for link in links for kind in kinds_of(link.manifest))})
    report: dict[str, Any] = {
        "title": title,
        "headline": headline(evaluation, kinds, links),
        "policies": {name: figures.model_dump(mode="json") for name, figures in evaluation.policies.items()},
        "baseline": evaluation.baseline,
        "yardstick": evaluation.yardstick,
        "sampling": evaluation.sampling,
        "kinds": kinds,
        "changes": changes(evaluation),
        "stages": [stage_facts(link) for link in links],
        "data": [row for link in links for row in data_counts(link)],
        "chain": [chain_entry(link) for link in links],
    }
    for figures in report["policies"].values():
        # `source` is a path: where things lie is told in `timings`
        for key in [k for k in figures if k == "source" or _is_timing(k)]:
            del figures[key]
    if against:
        report["against"] = side_by_side(evaluation, against)
    report["timings"] = {"stages": [timing(link) for link in links]}
    return report


def reference_of(evaluation: Evaluation, policy: str) -> str | None:
    """What a policy was trained from: the first policy (base) for the baseline, the baseline for all others."""
    names = list(evaluation.policies)
    if evaluation.baseline not in names or names.index(policy) < names.index(evaluation.baseline):
        return None
    if policy != evaluation.baseline:
        return evaluation.baseline
    return names[0] if names[0] != policy else None


def changes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """What each trained policy changed against the one it came from, paired by prompt."""
    rows = []
    for name, figures in evaluation.policies.items():
        origin = reference_of(evaluation, name)
        if origin is None:
            continue
        before, mine, theirs = evaluation.policies[origin], evaluation.per_prompt(name), evaluation.per_prompt(origin)
        differences = [mine[prompt] - theirs[prompt] for prompt in sorted(mine)]
        rows.append(
            {
                "policy": name,
                "from": origin,
                "rubric_difference": math.fsum(differences) / len(differences),
                "rubric_difference_interval": list(bootstrap_interval(differences)),
                "prompts_better": sum(d > 1e-9 for d in differences),
                "prompts_equal": sum(abs(d) <= 1e-9 for d in differences),
                "prompts_worse": sum(d < -1e-9 for d in differences),
                "criteria": {
                    c: share - before.criteria[c] for c, share in figures.criteria.items() if c in before.criteria
                },
                "length_tokens_difference": figures.length_tokens_mean - before.length_tokens_mean,
                "unfinished_difference": difference(figures.unfinished_share, before.unfinished_share),
                "repetition_difference": difference(figures.repetition_mean, before.repetition_mean),
            }
        )
    return rows


def difference(now: float | None, before: float | None) -> float | None:
    """`now` − `before`, None where either is not known."""
    return None if now is None or before is None else now - before


def verdict(interval: Interval | None) -> str:
    """How a win rate stands to an even 50%: `better`, `worse`, `undecided`, or `unknown` without an interval."""
    if interval is None:
        return "unknown"
    return "better" if interval[0] > 0.5 else "worse" if interval[1] < 0.5 else "undecided"


def headline(evaluation: Evaluation, kinds: Sequence[str], links: Sequence[Link] = ()) -> dict[str, Any]:
    """What changed, in words that claim no more than the intervals do."""
    names, base_line = list(evaluation.policies), evaluation.baseline
    start = names.index(base_line) + 1 if base_line in names else 0
    subjects = names[start:] or [name for name in names if name != base_line]
    parts = {name: verdict(evaluation.policies[name].win_rate_interval) for name in subjects}
    return {
        "claim": _claim(parts, base_line),
        "sentences": [_sentence(name, parts[name], evaluation) for name in subjects],
        "caveats": [*_caveats(evaluation, kinds), *_reward_caveats(links), *_guard_caveats(links)],
        "verdicts": parts,
    }


def _claim(parts: Mapping[str, str], baseline: str) -> str:
    sft = label(baseline)
    phrases = {
        "better": f"wins more often than {sft}",
        "worse": f"loses more often than it wins against {sft}",
        "undecided": f"cannot be told apart from {sft}",
        "unknown": f"was not compared with {sft}",
    }
    plural = {
        "better": f"win more often than {sft}",
        "worse": f"lose more often than they win against {sft}",
        "undecided": f"cannot be told apart from {sft}",
        "unknown": f"were not compared with {sft}",
    }
    clauses = []
    for outcome in phrases:
        who = [label(name) for name, part in parts.items() if part == outcome]
        if who:
            clauses.append(f"{_listed(who)} {(plural if len(who) > 1 else phrases)[outcome]}")
    return "; ".join(clauses) or f"Only {sft} was evaluated"


def _sentence(name: str, outcome: str, evaluation: Evaluation) -> str:
    figures = evaluation.policies[name]
    if figures.win_rate_vs_sft is None or figures.win_rate_interval is None:
        return f"{label(name)}: no win rate was measured."
    low, high = figures.win_rate_interval
    where = {
        "better": "wholly above an even 50%",
        "worse": "wholly below an even 50%",
        "undecided": "which includes an even 50%",
    }[outcome]
    return (
        f"{label(name)} wins {percent(figures.win_rate_vs_sft)} of {figures.n_prompts} held-out prompts against "
        f"{label(evaluation.baseline)} (95% interval {_edge(low)} to {_edge(high)}, {where})."
    )


def _caveats(evaluation: Evaluation, kinds: Sequence[str]) -> list[str]:
    rows = []
    if "simulated" in kinds:
        some = "Part of the" if {"human", "model"} & set(kinds) else "The"
        rows.append(
            f"{some} preferences come from simulated raters, not from people: this shows how far training follows "
            "the raters' written rule, not what people would prefer."
        )
    if "model" in kinds:
        rows.append("Judgments made by a model are among the preferences.")
    if not kinds or kinds == ["unstated"]:
        rows.append("The data does not say who judged.")
    n = min(figures.n_prompts for figures in evaluation.policies.values())
    if n < MANY_PROMPTS:
        rows.append(f"Only {n} prompts: bootstrap intervals on so few are too narrow.")
    return rows


def _reward_caveats(links: Sequence[Link]) -> list[str]:
    """A reward model that is not shown to beat a coin on held-out preferences makes its scores, and PPO's, moot."""
    rows = []
    for link in links:
        metrics = dict(link.manifest.get("metrics") or {})
        interval = metrics.get("held_out_accuracy_interval")
        if link.stage == "reward" and interval and interval[0] <= 0.5:
            rows.append(
                f"The reward model is right about {percent(metrics['held_out_accuracy'])} of held-out preferences "
                f"(95% interval {_edge(interval[0])} to {_edge(interval[1])}, which does not exclude chance): "
                "read its scores with care."
            )
    return rows


def _guard_caveats(links: Sequence[Link]) -> list[str]:
    """A guard that learned from the judgments that the training rests on shares their errors."""
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
                f"{name}'s guard learned from the same preferences as {name}'s training: it shares their errors, and may "
                "miss what one of another share of the judgments would see."
            )
    return rows


def stage_facts(link: Link) -> dict[str, Any]:
    """What a stage's manifest says of its work, less everything that time or the machine decides."""
    counts, metrics = _noted_counts(link), link.manifest.get("metrics")
    facts: dict[str, Any] = {"stage": link.stage, "id": link.id, "kinds": list(kinds_of(link.manifest))}
    if counts:
        facts["counts"] = _finite(counts)
    if isinstance(metrics, dict):
        steady = {k: v for k, v in _finite(metrics).items() if not _is_timing(k)}
        facts |= {"metrics": steady} if steady else {}
    if isinstance(guard := link.manifest.get("guard"), dict):
        facts["guard"] = {**_finite(guard), "decision": guard_decision(link.stage, guard)}
    return facts


def guard_decision(stage: str, guard: Mapping[str, Any]) -> str:
    """What the guard of a run kept, and why training ended, in words (see preference/guard.py)."""
    name, kept, first, last = label(stage), guard["kept"], guard["history"][0], guard["history"][-1]
    told = (
        f"{name} was guarded by a reward model that its training did not see, which scored the answers to "
        f"{number(guard['prompts'])} validation prompts at {len(guard['history'])} steps."
    )
    if kept["step"] == first["step"]:
        told += f" It liked no policy better than the one that training began with, so {name} is that one, as it was."
    else:
        liked = "the last policy" if kept["step"] == last["step"] else "the policy"
        told += (
            f" It liked {liked} of step {number(kept['step'])} best, which was kept: its score rose from "
            f"{number(first['score'])} to {number(kept['score'])}, at a KL of {number(kept['kl'])} nats per answer."
        )
    if guard["stopped_at_step"] is None:
        return f"{told} Training ran to its end, step {number(last['step'])}."
    times = "once" if guard["patience"] == 1 else f"{guard['patience']} times running"
    return (
        f"{told} Training was stopped at step {number(guard['stopped_at_step'])}: that score had fallen {times}, to "
        f"{number(last['score'])}, while what the training went by rose."
    )


def _noted_counts(link: Link) -> dict[str, Any]:
    """Counts in a stage's manifest, and the reasons for what it dropped in the report beside its data."""
    told = link.manifest.get("counts")
    counts = dict(told) if isinstance(told, dict) else {}
    path = Path(link.folder) / "final" / "report.json"
    if link.stage in ("prepare", "sample", "label") and path.is_file():
        report = json.loads(path.read_text(encoding="utf-8"))
        preferences = report.get("preferences")
        if isinstance(report.get("dropped"), dict):
            counts["dropped, by reason"] = report["dropped"]
        if isinstance(preferences, dict):
            counts["preferences"] = {k: v for k, v in preferences.items() if k in ("total", "dropped", "outcomes")}
    return counts


def _is_timing(key: str) -> bool:
    return any(word in key for word in TIMING_WORDS)


def timing(link: Link) -> dict[str, Any]:
    """When, where and how fast a stage ran."""
    keys = ("seconds", "peak_memory_bytes", "finished_at", "machine", "git_commit", "packages", "tiebreak")
    return {
        "stage": link.stage,
        "id": link.id,
        "folder": link.folder,
        **{key: link.manifest.get(key) for key in keys},
        "sources": {name: one["source"] for name, one in link.manifest["inputs"].items()},
    }


def chain_entry(link: Link) -> dict[str, Any]:
    """A run by what it is made of: ids alone, no paths."""
    inputs = {name: {"kind": one["kind"], "id": one["id"]} for name, one in link.manifest["inputs"].items()}
    return {"stage": link.stage, "id": link.id, "inputs": inputs, "outputs": len(link.manifest.get("outputs", {}))}


def data_counts(link: Link) -> list[dict[str, Any]]:
    """Rows in a data stage's files, counted in the files themselves, by split or by who judged."""
    rows = []
    for what in DATA_FILES:
        path = Path(link.folder) / "final" / f"{what}.jsonl"
        if path.is_file():
            by: Counter[str] = Counter()
            total = 0
            for _, row in read_rows(str(path)):
                total += 1
                key = row.get("kind") or row.get("split") or _prompt_split(row)
                by.update([str(key)] if key else [])
            rows.append({"stage": link.stage, "what": what, "rows": total, "by": dict(sorted(by.items()))})
    return rows


def _prompt_split(row: Mapping[str, Any]) -> object:
    prompt = row.get("prompt")
    return prompt.get("split") if isinstance(prompt, dict) else None


# --- several evaluations side by side ---


def side_by_side(first: Evaluation, others: Sequence[Evaluation]) -> dict[str, Any]:
    """The figures of several evaluations, once they have been shown to be comparable.

    Reward-model scores are carried only if one reward model gave them all: a score has no unit of its own, so two
    models' scores do not lie on one scale.

    Raises:
        HandoffError: prompts, yardstick, criteria, baseline or sampling differ.
    """
    for other in others:
        _refuse_incomparable(first, other)
    everyone = [first, *others]
    judges = {reward_model_id(one) for one in everyone}
    return {
        "score_comparable": len(judges) == 1 and None not in judges,
        "evaluations": [
            {
                "id": str(one.manifest["id"]),
                "name": name,
                "seed": one.sampling.get("seed"),
                "policies": {
                    policy: figures.model_dump(mode="json", exclude={"source"})
                    for policy, figures in one.policies.items()
                },
            }
            for name, one in zip(distinct_names([one.folder for one in everyone]), everyone, strict=True)
        ],
    }


def _refuse_incomparable(first: Evaluation, other: Evaluation) -> None:
    def refuse(what: str) -> HandoffError:
        return HandoffError(
            f"{other.folder} cannot stand beside {first.folder}: {what}. Evaluate both with the same prompts and "
            "settings, or leave it out of 'against'"
        )

    if first.prompt_ids != other.prompt_ids:
        only_first, only_other = first.prompt_ids - other.prompt_ids, other.prompt_ids - first.prompt_ids
        raise refuse(f"the prompts differ ({len(only_first)} only in the first, {len(only_other)} only in the second)")
    if first.yardstick != other.yardstick:
        raise refuse(f"the yardsticks differ ({first.yardstick} and {other.yardstick})")
    if _criteria(first) != _criteria(other):
        raise refuse(f"the rubric's criteria differ ({', '.join(sorted(_criteria(first) ^ _criteria(other)))})")
    if first.baseline != other.baseline:
        raise refuse(f"the win rates have different baselines ({first.baseline} and {other.baseline})")
    keys = sorted(k for k in first.sampling.keys() | other.sampling.keys() if k != "seed")
    unlike = [k for k in keys if first.sampling.get(k) != other.sampling.get(k)]
    if unlike:
        listed = ", ".join(f"{k}: {first.sampling.get(k)} and {other.sampling.get(k)}" for k in unlike)
        raise refuse(f"the answers were sampled differently ({listed})")


def _criteria(evaluation: Evaluation) -> set[str]:
    return {criterion for figures in evaluation.policies.values() for criterion in figures.criteria}


def reward_model_id(evaluation: Evaluation) -> str | None:
    """The id of the reward model that scored, None where there was none or the manifest does not say."""
    one = evaluation.manifest["inputs"].get("reward_model")
    return str(one["id"]) if one else None


def distinct_names(folders: Sequence[str]) -> list[str]:
    """The parts of paths that tell them apart: runs/seed0/evaluate, runs/seed1/evaluate → seed0, seed1."""
    parts = [Path(folder).parts for folder in folders]
    if len(folders) == 1 or len({len(p) for p in parts}) > 1:
        return [str(folder) for folder in folders]
    differing = [i for i in range(len(parts[0])) if len({p[i] for p in parts}) > 1]
    return ["/".join(p[i] for i in differing) or str(folder) for p, folder in zip(parts, folders, strict=True)]


# --- words ---


def kinds_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Who judged, from a list of kinds or their counts."""
    kinds = facts.get("kinds") or ()
    return (kinds,) if isinstance(kinds, str) else tuple(sorted(str(kind) for kind in kinds))


def label(policy: str) -> str:
    """A policy's name as prose prints it: SFT, DPO, PPO; other names as they are."""
    return policy.upper() if policy in ("sft", "dpo", "ppo") else policy


def _edge(share: float) -> str:
    """A percentage that does not round onto the 50% it is held against."""
    return f"{100 * share:.1f}%" if percent(share) == "50%" and share != 0.5 else percent(share)


def _listed(names: Iterable[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
