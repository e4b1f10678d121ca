"""The report as one self-contained HTML page: style, script and charts are inline, and its content policy allows no
request. Text from prompts and models is shown as plain text, never as HTML or Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from evaluation.compare import charts
from evaluation.compare.charts import Spot
from evaluation.compare.curves import Curve, Panel, base_name, read_panels, reward_against_kl
from evaluation.compare.pulls import pulls_part
from evaluation.compare.reading import Answer
from evaluation.compare.samples import Sample, missed
from evaluation.compare.words import edge, label
from evaluation.compare.yardsticks import benchmarks_part, canaries_part, gaps_part, slices_part, yardsticks_part
from tiebreak.measures.yardsticks.registry import COMPARED
from tiebreak.page.charts import Scale, change_scale, count_bar, outcome_bar, share_bar, swatch, value_scale, whisker
from tiebreak.page.document import build_document
from tiebreak.page.markup import Markup, el, join
from tiebreak.page.numbers import (
    digits_for,
    duration,
    finer_percent,
    first_and_last,
    memory,
    number,
    one_digit,
    p_value,
    percent,
    short,
    signed,
    signed_points,
    two_digits,
)
from tiebreak.page.tables import Form, cell, figure, heading, measured, note, ranged, table
from tiebreak.stages import STAGES, find_stage

MOST_IN_LEAD = 4
"""Up to this many sentences are shown as a paragraph; more are collapsed, since the table shows the same."""

Report = Mapping[str, Any]
Row = Mapping[str, Any]
Marks = Mapping[str, tuple[str, str]]
"""A policy's tone and shape."""

_KNOWN_MARKS = {"base": ("base", "circle"), **{s.name: s.mark for s in STAGES.values() if s.mark}}
_FURTHER_MARKS = tuple(
    (tone, shape)
    for shape in ("wedge", "circle", "square", "diamond", "triangle")
    for tone in ("extra", "other", "ppo", "dpo", "sft", "base")
    if (tone, shape) not in _KNOWN_MARKS.values()
)
"""26 marks besides those above; with more policies, they repeat."""
_WIN_SCALE = Scale(0.0, 1.0, ((0.0, "0%"), (0.5, "50%"), (1.0, "100%")), reference=0.5)


@dataclass(frozen=True)
class LoggedRun:
    """A run of the chain with its logged rows."""

    stage: str
    folder: str
    id: str
    rows: list[dict[str, Any]]
    config: Mapping[str, Any] = field(default_factory=dict)


def build_page(report: Report, trained: Sequence[LoggedRun], samples: Sequence[Sample]) -> str:
    """The whole page."""
    marks, measure = policy_marks(list(report["policies"])), Measure.of(report)
    sections = [
        ("figures", "Policies", _policies(report, marks, measure)),
        ("yardsticks", "Other yardsticks", yardsticks_part(report, marks)),
        ("slices", "By slice", slices_part(report, marks)),
        ("benchmarks", "Benchmarks", benchmarks_part(report, marks)),
        ("canaries", "Memorised canaries", canaries_part(report, marks)),
        ("gaps", "Counterfactual prompts", gaps_part(report, marks)),
        ("against", "Side by side with other evaluations", _against(report, marks, measure)),
        ("changes", "What each stage changed", _changes(report, marks, measure)),
        ("settings", "Training settings", _settings(report)),
        ("kl", "Reward against KL", _reward_against_kl(report, trained, marks)),
        ("curves", "Training curves", _curves(report, trained)),
        ("data", "From prompts to preferences", _data(report)),
        ("samples", "Answers side by side", _samples(report, samples, marks, measure)),
        ("pulls", "Judgments that pull against the rest", pulls_part(report)),
        ("chain", "Lineage", _chain(report)),
    ]
    script = resources.files("evaluation.compare").joinpath("page.js").read_text(encoding="utf-8")
    return build_document(report["title"], _head(report), sections, report, script)


def policy_marks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Tone and shape by policy: the same for base and the stages' own names in every report."""
    further = iter(_FURTHER_MARKS * (len(names) // 4 + 1))
    return {name: _KNOWN_MARKS.get(name) or next(further) for name in names}


@dataclass(frozen=True)
class Measure:
    """The yardstick as the page draws it."""

    name: str
    scale: Scale
    changes: Scale
    digits: int

    @classmethod
    def of(cls, report: Report) -> Measure:
        """With axes that cover every value of the report."""
        every = [report["policies"], *(one["policies"] for one in report.get("against", {}).get("evaluations", []))]
        rows = [row for policies in every for row in policies.values()]
        values = [v for row in rows for v in (row["yardstick_mean"], *(row["yardstick_interval"] or ()))]
        moved = [
            v
            for row in report["changes"]
            for v in (row["yardstick_difference"], *(row["yardstick_difference_interval"] or ()))
        ]
        declared = report["yardstick_scale"]
        scale = value_scale(values, tuple(declared) if declared else None)
        span = scale.high - scale.low
        least = span / 10 if declared else 0.0
        return cls(report["yardstick_name"], scale, change_scale(moved, least), digits_for(span))

    def form(self, value: float) -> str:
        return number(value, self.digits)

    def signed(self, value: float) -> str:
        return signed(value, self.digits)


# --- pieces of tables ---


def _named(policy: str, marks: Marks) -> Markup:
    return join(swatch(*marks[policy]), label(policy))


# --- head ---


def _head(report: Report) -> Markup:
    headline = report["headline"]
    facts = {
        "Prompts": f"{number(max(row['n_prompts'] for row in report['policies'].values()))} held out",
        "Yardstick": _yardstick(report),
        "Raters": ", ".join(report["kinds"]) or "not stated",
        "Answers drawn with": _sampling(report["sampling"]),
        "Evaluated": _finished(report),
    }
    return join(
        el("p", report["title"], cls="eyebrow"),
        el("h1", headline["claim"]),
        _lead(headline["sentences"]),
        [el("p", caveat, cls="caveat") for caveat in (*headline["caveats"], *headline["guards"])],
        el("div", [el("span", name, " ", el("b", value)) for name, value in facts.items() if value], cls="facts"),
    )


def _lead(sentences: Sequence[str]) -> Markup:
    if len(sentences) <= MOST_IN_LEAD:
        return el("p", " ".join(sentences), cls="lead")
    return el("details", el("summary", "In words, policy by policy"), [el("p", sentence) for sentence in sentences])


def _yardstick(report: Report) -> str:
    name, source = report["yardstick_name"], report["yardstick"]
    if source.partition(":")[0] in COMPARED:
        return f"{name}, against {label(report['baseline'])}, whose own value is one half"
    return str(source) if source in (name, "rubric") else f"{name} ({source})"


def _sampling(sampling: Row) -> str:
    words = {"max_new_tokens": "at most {} tokens", "top_p": "top-p {}", "top_k": "top-k {}"}
    simple = {k: v for k, v in sampling.items() if isinstance(v, (int, float, str)) and not isinstance(v, bool)}
    shown = {k: v for k, v in simple.items() if (k, v) != ("top_k", 0)}
    return ", ".join(words.get(k, k.replace("_", " ") + " {}").format(v) for k, v in shown.items())


def _finished(report: Report) -> str:
    times = [row["finished_at"] for row in report["timings"]["stages"] if row["stage"] == "evaluate"]
    return str(times[-1] or "").replace("T", " ").replace("Z", " UTC") if times else ""


# --- policies ---


def _policies(report: Report, marks: Marks, measure: Measure) -> Markup:
    policies, baseline = report["policies"], label(report["baseline"])
    judged = any("verdict" in row for row in policies.values())
    headings = [
        heading("Policy"),
        heading(measure.name, "mean, 95% interval", scale=measure.scale),
        heading(f"Win rate against {baseline}", "95% interval" + (", verdict" if judged else ""), scale=_WIN_SCALE),
        heading("Score", "reward model", numeric=True),
        heading(f"KL from {baseline}", "nats per answer", numeric=True),
        heading("Length", "tokens", numeric=True),
        heading("Cut off", "share", numeric=True),
        heading("Repetition", "share", numeric=True),
    ]
    rows = [_policy_row(name, row, report, marks, measure) for name, row in policies.items()]
    n = " or ".join(number(v) for v in sorted({row["n_prompts"] for row in policies.values()}))
    compared = max(row.get("comparisons", 1) for row in policies.values())
    of_these = sum(row.get("p_value") is not None for row in policies.values())
    which = (
        f"{compared} comparisons with {baseline}"
        if compared == of_these
        else f"all {compared} comparisons of the report"
    )
    remarks = (
        f"Means over {n} held-out prompts, the same for every policy. Intervals of means are 95% bootstraps over prompts "
        "(expanded percentiles), those of win rates score intervals. A win rate counts a tie as half a win; 50% is no "
        "difference. KL: the mean log-ratio of the policy's own answers (k1). Cut off: answers that reached the limit of "
        "tokens. Repetition: runs of four words that came before in the answer."
    )
    if judged:
        remarks += " Verdicts: McNemar's test at 5%, from 30 prompts on" + (
            f", p-values corrected for {which} (Holm)." if compared > 1 else "."
        )
    return join(el("div", table(headings, rows), cls="scroll"), note(remarks))


_VERDICTS = {"better": "better", "worse": "worse", "undecided": "no clear difference", "too few": "too few prompts"}


def _policy_row(name: str, row: Row, report: Report, marks: Marks, measure: Measure) -> Markup:
    win, rate = f"Win rate against {label(report['baseline'])}", row["win_rate_vs_baseline"]
    if rate is None:
        win_cell = cell(
            win, el("small", "the baseline") if name == report["baseline"] else "–", cls="measure", absent=True
        )
    else:
        drawn = whisker(rate, row["win_rate_interval"], _WIN_SCALE, *marks[name])
        shown = el("span", ranged(rate, row["win_rate_interval"], edge), _verdict_line(row), cls="stacked")
        win_cell = cell(win, drawn, shown, cls="measure")
    score = row["score_mean"]
    value, interval = row["yardstick_mean"], row["yardstick_interval"]
    return el(
        "tr",
        el("th", _named(name, marks), scope="row"),
        measured(measure.name, value, interval, measure.scale, measure.form, marks[name]),
        win_cell,
        figure("Score", None, two_digits)
        if score is None
        else cell("Score", ranged(score, row["score_interval"], two_digits), cls="n two-lines"),
        figure("KL, nats per answer", None, one_digit)
        if row["kl_per_sequence"] is None
        else cell(
            "KL, nats per answer",
            ranged(row["kl_per_sequence"], row.get("kl_per_sequence_interval"), one_digit),
            cls="n two-lines" if row.get("kl_per_sequence_interval") else "n",
        ),
        figure("Length, tokens", row["length_tokens_mean"], one_digit),
        figure("Cut off", row["unfinished_share"], finer_percent),
        figure("Repetition", row["repetition_mean"], finer_percent),
    )


def _verdict_line(row: Row) -> Markup | None:
    words = _VERDICTS.get(row.get("verdict", ""))
    if words is None:
        return None
    return el("small", words if row["verdict"] == "too few" else f"{words}, p {p_value(row['p_value'])}", cls="verdict")


# --- what each stage changed ---


def _changes(report: Report, marks: Marks, measure: Measure) -> Markup | None:
    changes = report["changes"]
    if not changes:
        return None
    headings = [
        heading("Stage"),
        heading(f"Change of {_lower(measure.name)}", "paired by prompt, 95% interval", scale=measure.changes),
        heading("Prompts", "better, equal, worse"),
        heading("Length", "tokens", numeric=True),
        heading("Cut off", "points", numeric=True),
        heading("Repetition", "points", numeric=True),
        heading("Time", numeric=True),
        heading("Peak memory", numeric=True),
    ]
    rows = [_change_row(row, report, marks, measure) for row in changes]
    unknown = [label(row["policy"]) for row in changes if not row["trained_from"]]
    remark = (
        note(f"No manifest shows what {', '.join(unknown)} was trained from: compared with the baseline.")
        if unknown
        else None
    )
    return join(el("div", table(headings, rows), cls="scroll"), remark, _criteria(report, marks))


def _lower(name: str) -> str:
    """A name inside a sentence: Rubric score → the rubric score; a user's own unchanged."""
    return "the rubric score" if name == "Rubric score" else name


def _change_row(row: Row, report: Report, marks: Marks, measure: Measure) -> Markup:
    name, counts = row["policy"], (row["prompts_better"], row["prompts_equal"], row["prompts_worse"])
    interval = row["yardstick_difference_interval"]
    cost: Row = next((time for time in report["timings"]["stages"] if time["id"] == row["run"]), {})
    origin = f" {'from' if row['trained_from'] else 'against'} {label(row['from'])}"
    origin += f", through {', '.join(map(label, row['through']))}" if row["through"] else ""
    return el(
        "tr",
        el("th", _named(name, marks), el("small", origin, cls="unit"), scope="row"),
        measured(measure.name, row["yardstick_difference"], interval, measure.changes, measure.signed, marks[name]),
        cell(
            "Better, equal, worse",
            outcome_bar(*counts),
            el("span", ", ".join(map(str, counts)), cls="value"),
            cls="measure",
        ),
        figure("Length, tokens", row["length_tokens_difference"], lambda v: signed(v, 1)),
        figure("Cut off, points", row["unfinished_difference"], signed_points),
        figure("Repetition, points", row["repetition_difference"], signed_points),
        figure("Time", cost.get("seconds"), duration),
        figure("Peak memory", cost.get("peak_memory_bytes"), memory),
    )


# --- settings ---


def _settings(report: Report) -> Markup | None:
    """One column per trained run, one row per hyperparameter that differs."""
    trained = [stage for stage in report["stages"] if "settings" in stage]
    if not trained:
        return None
    policies = {row["run"]: label(row["policy"]) for row in report["changes"] if row["run"]}
    titles = [
        join(policies.get(stage["id"], label(stage["stage"])), el("small", el("code", short(stage["id"])), cls="unit"))
        for stage in trained
    ]
    values: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for stage in trained for name in stage["settings"]):
        values[name] = [stage["settings"].get(name) for stage in trained]
    shared = {name: row[0] for name, row in values.items() if len(trained) > 1 and all(v == row[0] for v in row)}
    rows = [
        el("tr", el("th", name, scope="row"), [el("td", _setting(value), cls="n") for value in row])
        for name, row in values.items()
        if name not in shared
    ]
    headings = [heading("Setting"), *(el("th", title, scope="col", cls="n") for title in titles)]
    same = "; ".join(f"{name} {_setting(value)}" for name, value in shared.items())
    return join(
        el("div", table(headings, rows, cls="plain"), cls="scroll"),
        note(f"The same in all: {same}.") if shared else None,
    )


def _setting(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _criteria(report: Report, marks: Marks) -> Markup | None:
    policies = report["policies"]
    names = list(dict.fromkeys(criterion for row in policies.values() for criterion in row["criteria"]))
    if not names:
        return None
    rows = []
    for name in names:
        cells = []
        for policy, row in policies.items():
            share = row["criteria"].get(name)
            drawn = "–" if share is None else join(share_bar(share, marks[policy][0]), " ", el("span", percent(share)))
            cells.append(cell(label(policy), drawn, cls="share"))
        rows.append(el("tr", el("th", name, scope="row"), cells))
    headings = [heading("Criterion"), *(el("th", _named(policy, marks), scope="col") for policy in policies)]
    return join(el("h3", "Share of answers that meet each criterion"), table(headings, rows))


# --- side by side with other evaluations ---


def _against(report: Report, marks: Marks, measure: Measure) -> Markup | None:
    if "against" not in report:
        return None
    against = report["against"]
    evaluations = against["evaluations"]
    policies = list(dict.fromkeys(name for one in evaluations for name in one["policies"]))
    marks = {**policy_marks(policies), **marks}
    measures: list[tuple[str, str, str | None, Form]] = [
        (measure.name, "yardstick_mean", "yardstick_interval", measure.form),
        (f"Win rate against {label(report['baseline'])}", "win_rate_vs_baseline", "win_rate_interval", edge),
        ("KL, nats per answer", "kl_per_sequence", "kl_per_sequence_interval", one_digit),
        ("Length, tokens", "length_tokens_mean", None, one_digit),
    ]
    if against["score_comparable"]:
        measures.insert(2, ("Score", "score_mean", "score_interval", two_digits))
    rows = []
    for policy in policies:
        figures = [one["policies"].get(policy, {}) for one in evaluations]
        shown = [m for m in measures if any(row.get(m[1]) is not None for row in figures)]
        for at, one in enumerate(shown):
            first = el("th", _named(policy, marks), scope="rowgroup", rowspan=len(shown)) if at == 0 else None
            rows.append(el("tr", first, el("td", one[0]), [_beside(row, *one[1:]) for row in figures]))
    headings = [heading("Policy"), heading("Figure"), *(heading(one["name"], numeric=True) for one in evaluations)]
    remark = "All on the same prompts, with the same yardstick and the same sampling settings."
    if not against["score_comparable"]:
        remark += (
            " Scores of the reward model are left out: they do not come from one reward model, and the scores of two "
            "have no common scale."
        )
    return join(el("div", table(headings, rows, cls="beside"), cls="scroll"), note(remark))


def _beside(row: Row, key: str, interval: str | None, form: Form) -> Markup:
    value, edges = row.get(key), row.get(interval) if interval else None
    shown = "–" if value is None else ranged(value, edges, form)
    return el("td", shown, None if edges else el("small"), cls="n")  # an empty interval keeps the figures in line


# --- reward against KL ---


def _reward_against_kl(report: Report, trained: Sequence[LoggedRun], marks: Marks) -> Markup | None:
    parts = [_scores_against_kl(report, trained, marks)]
    parts += [_guarded(stage) for stage in report["stages"] if "guard" in stage]
    return join(*parts) if any(parts) else None


def _scores_against_kl(report: Report, trained: Sequence[LoggedRun], marks: Marks) -> Markup | None:
    ppo, name_of_ppo = _evaluated_ppo(report, trained)
    left_out = _why_left_out(report, ppo.id) if ppo else None
    path = reward_against_kl(ppo.rows) if ppo and left_out is None else []
    baseline = label(report["baseline"])
    spots = [
        Spot(label(name), row["kl_per_sequence"] or 0.0, row["score_mean"], row["score_interval"], *marks[name])
        for name, row in report["policies"].items()
        if row["score_mean"] is not None and (row["kl_per_sequence"] is not None or name == report["baseline"])
    ]
    near, far = _outlying(spots, path, report)
    if len(near) + len(path) < 2:
        return None
    legend = [el("span", swatch(s.tone, s.shape), f"{s.name}, held-out prompts") for s in near]
    if path:
        legend.append(
            el(
                "span",
                charts.line_key("ppo", False),
                f"{name_of_ppo}'s rollouts on training prompts, darker with the steps",
            )
        )
    outside = "; ".join(f"{s.name}: KL {number(s.kl)}, score {number(s.score)}" for s in far)
    side = el(
        "div",
        el("div", legend, cls="legend column"),
        note(
            "What optimisation paid for its score: up is better liked by the reward model, right is further from "
            f"{baseline}. A score that rises while the yardstick does not is a sign of over-optimisation."
        ),
        note("Whiskers are 95% intervals over prompts."),
        note(f"Too far right to be drawn. {outside}.") if far else None,
        note(f"{name_of_ppo}'s rollouts are left out: {left_out}.") if left_out else None,
    )
    return el("div", el("figure", charts.kl_chart(path, near, baseline)), side, cls="split")


def _evaluated_ppo(report: Report, trained: Sequence[LoggedRun]) -> tuple[LoggedRun | None, str]:
    """The last PPO run among the evaluated policies, and its name; of the chain where no policy's run is recorded."""
    runs = [run for run in trained if {"objective/kl", "objective/scores"} <= find_stage(run.stage).metrics.keys()]
    names = {row["run"]: label(row["policy"]) for row in report["changes"] if row["run"]}
    evaluated = [run for run in runs if run.id in names] or ([] if names else runs)
    return (evaluated[-1], names.get(evaluated[-1].id, "PPO")) if evaluated else (None, "")


def _why_left_out(report: Report, ppo: str) -> str | None:
    """Why a PPO run's figures are on other axes than the evaluation's; None if they are not."""
    if not _scored_alike(report, ppo):
        return "it went by other rewards than the reward model that scored the policies"
    origin = next((row for row in report["changes"] if row["run"] == ppo), None)
    if origin is not None and (origin["from"], origin["through"]) != (report["baseline"], []):
        return f"their KL is from the policy that it was trained from, not from {label(report['baseline'])}"
    return None


def _scored_alike(report: Report, ppo: str) -> bool:
    """Whether a PPO run was trained on the evaluation's reward model alone: other scores are on another scale."""
    inputs = {row["id"]: row["inputs"] for row in report["chain"]}
    evaluated = next(row["inputs"] for row in reversed(report["chain"]) if row["stage"] == "evaluate")
    judge = evaluated.get("reward_model", {}).get("id")
    further = any(name.startswith("rewards.") for name in inputs[ppo])
    return judge is not None and inputs[ppo].get("reward_model", {}).get("id") == judge and not further


def _guarded(stage: Row) -> Markup:
    """Both scores against KL at the steps a guard evaluated: each has its own scale, so each has a chart."""
    guard, tone = stage["guard"], _tone_of(stage["stage"])
    implicit = find_stage(stage["stage"]).implicit_rewards
    goes_by = "the margin of implicit rewards" if implicit else "its own rewards"
    drawn = [
        ("training_score", "The training's own score", f"{goes_by}, which it raises"),
        ("score", "The guard's score", "a held-out reward model"),
    ]
    figures = [
        el(
            "figure",
            el("figcaption", el("b", title), el("div", legend, cls="legend")),
            charts.guard_chart(
                [(v["step"], v["kl"], v[key]) for v in guard["history"]], guard["kept"]["step"], title, tone
            ),
        )
        for key, title, legend in drawn
    ]
    remark = (
        "Later steps are darker; the ringed one is the kept policy. The two scores come from different "
        "judges and have different scales: where a policy is over-optimised, they move in different directions."
    )
    title = f"The guard of {label(stage['stage'])}"
    return join(el("h3", title), el("p", guard["decision"]), el("div", figures, cls="panels pair"), note(remark))


def _outlying(
    spots: Sequence[Spot], path: Sequence[tuple[float, float, float]], report: Report
) -> tuple[list[Spot], list[Spot]]:
    """An untrained policy far to the right would compress all the rest: it is described in words instead."""
    names = list(report["policies"])
    start = names.index(report["baseline"]) if report["baseline"] in names else 0
    untrained = {label(name) for name in names[:start]}
    reach = max([0.0, *(kl for _, kl, _ in path), *(s.kl for s in spots if s.name not in untrained)])
    far = [s for s in spots if s.name in untrained and reach > 0 and s.kl > 3 * reach]
    return [s for s in spots if s not in far], far


# --- training curves ---

_FURTHER_TONES = ("base", "other", "extra", "sft", "dpo", "ppo")


def _tone_of(stage: str) -> str:
    tone, _ = find_stage(stage).mark or ("extra", "")
    return tone


def _curves(report: Report, trained: Sequence[LoggedRun]) -> Markup | None:
    final = {stage["id"]: stage.get("metrics", {}) for stage in report["stages"]}
    kept = {stage["id"]: stage["guard"]["kept"]["step"] for stage in report["stages"] if "guard" in stage}
    parts: list[Markup | None] = []
    for run in trained:
        main, further = read_panels(run.rows, run.stage, run.config)
        if not main:
            continue
        steps = max((row.get("step") or 0) for row in run.rows)
        where = el(
            "span", el("code", run.folder), f", {number(steps)} steps, run ", el("code", short(run.id)), cls="note-text"
        )
        parts.append(el("div", el("h3", label(run.stage)), where, cls="stage-head"))
        drawn_keys = {curve.key for panel in (*main, *further) for curve in panel.curves}
        at_end = final_figures({k: v for k, v in final.get(run.id, {}).items() if k not in drawn_keys})
        parts.append(note(f"At the end: {', '.join(at_end)}.") if at_end else None)
        parts.append(el("div", [_panel(panel, run.stage, kept.get(run.id)) for panel in main], cls="panels"))
        if further:
            drawn = el("div", [_panel(panel, run.stage, kept.get(run.id)) for panel in further], cls="panels")
            parts.append(el("details", el("summary", f"{len(further)} further figures"), drawn))
    legend = note(
        "Solid: training data. Dashed: held-out data. Beside each name: its first and last value."
        + (" A dotted line marks the step whose policy a guard kept." if kept else "")
    )
    return join(legend, parts) if parts else None


def final_figures(metrics: Mapping[str, Any]) -> list[str]:
    """A stage's final figures as words, each beside its interval.

    >>> final_figures({"held_out_accuracy": 0.75, "held_out_accuracy_interval": [0.6, 0.86], "n": 40})
    ['held out accuracy 0.750 (95% interval 0.600 to 0.860)', 'n 40']
    """
    phrases = []
    for key, value in metrics.items():
        edges = metrics.get(f"{key}_interval")
        if isinstance(value, (int, float)):
            words = f"{key.replace('_', ' ')} {number(value)}"
            phrases.append(f"{words} (95% interval {number(edges[0])} to {number(edges[1])})" if edges else words)
    return phrases


def _panel(panel: Panel, stage: str, kept: float | None) -> Markup:
    tones = _panel_tones(panel, _tone_of(stage))
    legend = [_legend_entry(curve, tone) for curve, tone in zip(panel.curves, tones, strict=True)]
    each = max(curve.steps_a_point for curve in panel.curves)
    notes = [f"each point the mean of {each} rows"] if each > 1 else []
    notes += [f"not drawn, because not finite: {c.skipped} of {c.key}" for c in panel.curves if c.skipped]
    return el(
        "figure",
        el("figcaption", el("b", panel.title), el("div", legend, cls="legend")),
        charts.line_chart(panel, tones, kept),
        el("output", cls="readout"),
        el("span", "; ".join(notes), cls="note-text") if notes else None,
    )


def _panel_tones(panel: Panel, first: str) -> list[str]:
    """The stage's own colour first. A figure and its held-out twin share one: the dashes tell them apart."""
    tones = [first, *(tone for tone in _FURTHER_TONES if tone != first)]
    trained = [base_name(curve.key) for curve in panel.curves if not curve.held_out]
    names = [_twin(curve, trained) for curve in panel.curves]
    order = list(dict.fromkeys(names))
    return [tones[order.index(name) % len(tones)] for name in names]


def _twin(curve: Curve, trained: Sequence[str]) -> str:
    """The training figure that a held-out one belongs to, by its whole name or its last part; else its own name."""
    name = base_name(curve.key)
    if not curve.held_out or name in trained:
        return name
    last = name.rpartition("/")[2].removesuffix("s")
    return next((one for one in trained if one.rpartition("/")[2].removesuffix("s") == last), name)


def _legend_entry(curve: Curve, tone: str) -> Markup:
    first, last = curve.points[0][1], curve.points[-1][1]
    values = number(last) if len(curve.points) == 1 else first_and_last(first, last)
    return el("span", charts.line_key(tone, curve.held_out), f"{curve.key} {values}")


# --- data ---


def _data(report: Report) -> Markup | None:
    data = report["data"]
    if not data:
        return None
    most = max(row["rows"] for row in data)
    rows = [
        el(
            "tr",
            el("th", row["what"], scope="row"),
            cell("Rows", number(row["rows"]), cls="n"),
            cell("", count_bar(row["rows"], most), cls="count-bar"),
            cell("Breakdown", ", ".join(f"{k} {number(v)}" for k, v in row["by"].items()) or "–", absent=not row["by"]),
            cell("Written by", row["stage"]),
        )
        for row in data
    ]
    headings = [
        heading("Records"),
        heading("Rows", numeric=True),
        el("th"),
        heading("Breakdown"),
        heading("Written by"),
    ]
    noted = [
        el("tr", el("th", stage["stage"], scope="row"), cell("Counts", ", ".join(flat_counts(stage["counts"]))))
        for stage in report["stages"]
        if "counts" in stage
    ]
    further = el("details", el("summary", "Counts that the stages noted"), table([], noted)) if noted else None
    return join(table(headings, rows), further)


def flat_counts(counts: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested counts as lines of words.

    >>> flat_counts({"kept": 210, "dropped": {"near_duplicate": 3}})
    ['kept 210', 'dropped: near duplicate 3']
    """
    rows: list[str] = []
    for key, value in counts.items():
        name = prefix + str(key).replace("_", " ")
        if isinstance(value, Mapping):
            rows += flat_counts(value, f"{name}: ")
        elif isinstance(value, (int, float)):
            rows.append(f"{name} {number(value)}")
    return rows


# --- samples ---


def _samples(report: Report, samples: Sequence[Sample], marks: Marks, measure: Measure) -> Markup | None:
    if not samples:
        return None
    total = max(row["n_prompts"] for row in report["policies"].values())
    chosen = (
        f"All {total} prompts."
        if len(samples) >= total
        else f"{len(samples)} of {total} prompts: the largest gains, the largest losses and random ones by turns."
    )
    changes = (
        f" Gain and loss: the change of {_lower(measure.name)} from the policy that the one named was trained from."
    )
    more = el(
        "p",
        el("button", "Show more", type="button", id="more"),
        " ",
        el("span", cls="note-text", id="tally", role="status"),
        cls="more",
        hidden=True,
    )
    cards = el("div", [_sample(sample, marks, measure) for sample in samples], id="sample-list")
    return join(note(chosen, changes), _sample_controls(report, marks), cards, more)


def _sample_controls(report: Report, marks: Marks) -> Markup:
    orders = {"random": "random", "gain": "largest gain first", "loss": "largest loss first"}
    subjects = [row["policy"] for row in reversed(report["changes"])]
    boxes = [
        el("label", el("input", type="checkbox", name_="policy", value=name, checked=True), _named(name, marks))
        for name in report["policies"]
    ]
    return el(
        "div",
        el(
            "label",
            "Order ",
            el("select", [el("option", title, value=key) for key, title in orders.items()], id="order"),
        ),
        el("label", "of ", el("select", [el("option", label(name), value=name) for name in subjects], id="subject")),
        el("label", "Containing ", el("input", type="search", id="search", size=16)),
        el("fieldset", el("legend", "Show"), boxes),
        cls="controls",
        hidden=True,
    )


def _sample(sample: Sample, marks: Marks, measure: Measure) -> Markup:
    only = len(sample.messages) == 1
    turns = [el("p", None if only else el("span", m.role, cls="role"), m.text, cls="turn") for m in sample.messages]
    answers = [
        _answer(name, answer, sample.change.get(name), marks, measure) for name, answer in sample.answers.items()
    ]
    change = json.dumps({name: round(value, 6) for name, value in sample.change.items()})
    body = [el("div", turns, cls="prompt"), el("div", answers, cls="answers")]
    return el("article", body, cls="sample", data_place=sample.place, data_change=change)


def _answer(name: str, answer: Answer, change: float | None, marks: Marks, measure: Measure) -> Markup:
    name_of_value = "rubric" if measure.name == "Rubric score" else measure.name
    moved = f" ({measure.signed(change)})" if change else ""
    facts = [f"{name_of_value} {measure.form(answer.yardstick_score)}{moved}"]
    facts += [f"score {number(answer.score, 2)}"] if answer.score is not None else []
    facts += [f"{answer.length_tokens} tokens"] + ([] if answer.finished else ["cut off"])
    lacking = missed(answer)
    return el(
        "div",
        el("header", el("strong", _named(name, marks)), " ", ", ".join(facts)),
        el("p", answer.text, cls="turn") if answer.text.strip() else el("p", "an empty answer", cls="empty"),
        el("footer", f"not met: {', '.join(lacking)}") if lacking else None,
        cls="answer",
        data_policy=name,
    )


# --- chain ---


def _chain(report: Report) -> Markup:
    stages_of = {row["id"]: row["stage"] for row in report["chain"]}
    timings = {row["id"]: row for row in report["timings"]["stages"]}
    shared = _shared_packages(list(timings.values()))
    headings = [heading(title) for title in ("Stage", "Folder", "Id", "Made from", "Git commit")]
    headings += [heading("Time", numeric=True), heading("Peak memory", numeric=True)]
    rows = [_chain_row(row, timings[row["id"]], stages_of, shared) for row in report["chain"]]
    machines = sorted({str(row["machine"]) for row in timings.values() if row["machine"]})
    notes = [f"All stages together: {duration(sum(row['seconds'] or 0 for row in timings.values()))}."]
    notes += [f"Machine: {'; '.join(machines)}."] if machines else []
    notes += (
        [f"Packages, the same in every stage: {', '.join(f'{k} {v}' for k, v in shared.items())}."] if shared else []
    )
    return join(
        note(
            "Every figure above can be traced to these runs. An id is a hash of what a run did: its stage, "
            "configuration, inputs and outputs. A + after a commit: files differed from it."
        ),
        el("div", table(headings, rows, cls="chain stack"), cls="scroll"),
        note(" ".join(notes)),
    )


def _chain_row(row: Row, time: Row, stages_of: Mapping[str, str], shared: Mapping[str, str]) -> Markup:
    inputs = []
    for name, one in row["inputs"].items():
        made = label(stages_of[one["id"]]) if one["id"] in stages_of else time["sources"].get(name, "")
        identity = None if one["kind"] == "name" else el("code", short(one["id"]), title=one["id"])
        inputs.append(el("span", f"{name}: {made} ", identity, cls="input"))
    own = ", ".join(f"{k} {v}" for k, v in (time["packages"] or {}).items() if shared.get(k) != v)
    return el(
        "tr",
        el("th", label(row["stage"]), scope="row"),
        cell("Folder", el("code", time["folder"])),
        cell("Id", el("code", short(row["id"]), title=row["id"])),
        cell("Made from", el("span", inputs or "–")),
        cell("Git commit", el("code", time["git_commit"] or "–"), el("small", f" {own}") if own else None),
        figure("Time", time["seconds"], duration),
        figure("Peak memory", time["peak_memory_bytes"], memory),
    )


def _shared_packages(rows: Sequence[Row]) -> dict[str, str]:
    """Versions that every stage ran with."""
    every = [row["packages"] or {} for row in rows]
    return {k: v for k, v in every[0].items() if all(one.get(k) == v for one in every)} if every else {}
