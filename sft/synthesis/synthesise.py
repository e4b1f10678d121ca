"""Makes synthetic prompts, answers and pairs, for people to review.

    tiebreak synthesise --config synthesise.yaml

Everything it makes carries the tag `synthetic` to the last report. Rows that repeat real rows, test prompts or one another
are dropped, with refusals and with rows that hold personal data. Without `review: none`, no row reaches training before
people have reviewed it (tiebreak label, task: review).
"""

from __future__ import annotations

import importlib.util
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from sft.duplicates import trigrams
from sft.normalising import normalise
from sft.synthesis.configuration import ANSWERED, PAPERS, SynthesiseConfig
from sft.synthesis.methods import PLACE, Draft, Material, draft_rows
from sft.synthesis.page import build_page
from sft.synthesis.writers import Writer, Written, build_writer
from tiebreak.command.launch import stage_main
from tiebreak.data.reading import FINAL_NAMES, Rules, is_run, read, read_own, read_rows, settle
from tiebreak.data.synthetic import SYNTHETIC, UNREVIEWED
from tiebreak.endpoint.asking import ANSWERS
from tiebreak.errors import ConfigError, DataError, counted
from tiebreak.files import write_json, write_jsonl, write_text_atomically
from tiebreak.measures.canaries import CANARY
from tiebreak.messages import Message, content_id, prompt_id, text_of
from tiebreak.records import Completion, Demonstration, Pair, Preference, Prompt
from tiebreak.runs.requirements import require
from tiebreak.runs.run import Run, clear_partial, start_run
from tiebreak.terminal import say
from tiebreak.tracking.recorder import tracked

LONGEST = 4000
"""characters of a prompt or an answer"""
_REFUSAL = re.compile(
    r"^\W*(?:I(?:'|’)?m sorry|I am sorry|Sorry, (?:but )?I can|I can(?:not|(?:'|’)t) (?:help|assist|fulfil)|As an AI|"
    r"Es tut mir leid, aber ich kann|Als KI)",
    re.IGNORECASE,
)
_WRAPPING = re.compile(
    r"^(?:(?:here is|here's|hier ist)[^\n:]{0,60}:\s*|(?:request|prompt|anfrage|frage)\s*:\s*|\d+[.)]\s+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Made:
    """A synthetic row."""

    draft: Draft
    prompt_tokens: int = 0
    completion_tokens: int = 0


def synthesise(config: SynthesiseConfig) -> None:
    """The stage."""
    for source in (*config.demonstrations, *config.prompts, *([config.gaps] if config.gaps else [])):
        require(config.require, source)
    writer = build_writer(config)
    with start_run(config, "synthesise") as run, tracked(run):
        if run.finished:
            say(f"{run.folder} is finished with this configuration and these inputs: nothing to do")
            return
        material, tests = read_material(config)
        drafts = draft_rows(config, material)
        screen = Screen(material, tests, config.near_duplicate, read_test_answers(config))
        made, dropped, spent = make(config, run, writer, drafts, screen)
        write_rows(config, run, made, writer.name if writer else "")
        write_jsonl(run.final / "dropped.jsonl", dropped)
        report = build_report(config, writer, drafts, made, dropped, spent, material)
        write_json(run.final / "report.json", report)
        run.facts |= {"counts": report["counts"], "synthetic": {"rows": len(made), "of": len(made)}}
        write_text_atomically(run.folder / "report.html", build_page(report))
        forget_personal_data(run, screen)
        run.finish()
        clear_partial(run)
        _say_report(config, run, report)


# --- real rows ---


def read_material(config: SynthesiseConfig) -> tuple[Material, list[Prompt]]:
    """(real rows to learn from, test prompts, which must not be generated)."""
    demonstrations: list[Demonstration] = [
        one for source in config.demonstrations for one in _records(source, "demonstrations")
    ]
    prompts: list[Prompt] = [one for source in config.prompts for one in _records(source, "prompts")]
    for source in config.demonstrations:
        if is_run(source):
            prompts += _records(source, "prompts")
    everything = [*prompts, *(one.prompt for one in demonstrations)]
    tests = [one for one in everything if one.split == "test"]
    for source in config.against:
        tests += _records(source, "prompts")
    seeds = {one.id: one for one in everything if one.split == "train" and not {SYNTHETIC, CANARY} & {*one.tags}}
    own = [one for one in demonstrations if one.prompt.id in seeds]
    shown = {content_id(one.prompt.id, one.text): one for one in own if _is_one_turn(one)}
    if several := len(own) - sum(map(_is_one_turn, own)):
        say(
            f"{counted(several, 'demonstration')} of several turns: not used by {', '.join(ANSWERED)}, which "
            "would lose the turns before the last"
        )
    gaps = [row for _, row in read_rows(config.gaps, "gaps.jsonl")] if config.gaps else []
    if config.gaps and not gaps:
        raise DataError(f"gaps: {config.gaps} has none: nothing is rare, so leave gap-cards out")
    material = Material(
        [seeds[name] for name in sorted(seeds)], [shown[name] for name in sorted(shown)], gaps, _templates(config)
    )
    if not material.prompts and {*config.methods} - {"gap-cards", "templates"}:
        raise DataError("no prompts of the train split to learn from in demonstrations and prompts")
    if not material.demonstrations and (needy := [name for name in config.methods if name in ANSWERED]):
        raise DataError(
            f"methods: {needy[0]} learns from demonstrations of one turn of the train split, and there are none"
        )
    return material, tests


def _is_one_turn(one: Demonstration) -> bool:
    """Whether it is a question and its answer. A system message before them is left out."""
    return [message.role for message in one.prompt.messages if message.role != "system"] == ["user"]


def read_test_answers(config: SynthesiseConfig) -> list[str]:
    """The answers of test sets, which must not be generated either."""
    own = [one for source in config.demonstrations for one in _records(source, "demonstrations")]
    others = [one for source in config.against for one in _answered(source)]
    return [one.text for one in [*(one for one in own if one.prompt.split == "test"), *others]]


def _answered(source: str) -> list[Demonstration]:
    """The rows of a test set that have answers: many have none, or answers of another kind."""
    if is_run(source):
        has_answers = (Path(source) / "final" / FINAL_NAMES["demonstrations"]).is_file()
        return _records(source, "demonstrations") if has_answers else []
    drafts = read(source, "demonstrations", Rules(stage="synthesise")).drafts
    return [draft.placed("test") for draft in drafts]


def _records(source: str, wanted: Any) -> list[Any]:
    if is_run(source):
        return read_own(source, wanted, "synthesise")
    rules = Rules(stage="synthesise")
    return [draft.placed(draft.split or "train") for draft in settle(read(source, wanted, rules), rules)]


def _templates(config: SynthesiseConfig) -> list[Mapping[str, Any]]:
    if config.templates is None:
        return []
    rows = read_rows(config.templates)
    for where, row in rows:
        if fault := _fault_of_template(row):
            raise ConfigError(f"{where}: {fault}")
    return [row for _, row in rows]


def _fault_of_template(row: Mapping[str, Any]) -> str:
    """What is wrong with a template; empty if nothing."""
    values, texts = row.get("values", {}), [row.get("prompt"), row.get("completion", "")]
    fits = isinstance(values, dict) and all(isinstance(one, list) and one for one in values.values())
    if not fits or not all(isinstance(text, str) for text in texts) or row.keys() - {"prompt", "completion", "values"}:
        return "a template has prompt, completion and values, as {lamp: [Arc, Line]}, and nothing else"
    places = {place for text in texts for place in PLACE.findall(_WITHOUT_CODE.sub("", text))}
    if missing := sorted(places - values.keys()):
        return f"{{{missing[0]}}} has no values: add it to values, which has {', '.join(values) or 'none'}"
    if unused := sorted(name for name in values if not any(f"{{{name}}}" in text for text in texts)):
        return f"values: {{{unused[0]}}} is neither in the prompt nor in the completion"
    return ""


_WITHOUT_CODE = re.compile(r"(?<=[\\\w}$]){\w+}")
"""braces after a command, a name or another brace, as in \\frac{a}{b}: no place of a template"""


# --- screening ---


class Texts:
    """Texts by their word trigrams."""

    def __init__(self) -> None:
        self.sets: list[tuple[str, frozenset[Any]]] = []
        self.places: dict[Any, list[int]] = defaultdict(list)

    def add(self, what: str, text: str) -> None:
        """Add a text that must not be generated again."""
        one = trigrams(text)
        for member in one:
            self.places[member].append(len(self.sets))
        self.sets.append((what, one))

    def nearest(self, text: str) -> tuple[float, str]:
        """(overlap, description) of the most similar text."""
        one, shared = trigrams(text), Counter[int]()
        for member in one:
            shared.update(self.places.get(member, ()))
        best = max(shared, key=lambda n: (shared[n] / (len(one) + len(self.sets[n][1]) - shared[n]), -n), default=None)
        if best is None:
            return 0.0, ""
        return shared[best] / (len(one) + len(self.sets[best][1]) - shared[best]), self.sets[best][0]


class Screen(Texts):
    """Says why a row is not kept: its texts are the prompts that must not be generated again."""

    def __init__(
        self, material: Material, tests: Iterable[Prompt], threshold: float, test_answers: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.tests = Texts()
        for one in tests:
            self.add("a test prompt", _text(one))
            self.tests.add("a test prompt", _text(one))
        for one in material.prompts:
            self.add("a real prompt", _text(one))
        self.answers = Texts()
        for text in test_answers:
            self.answers.add("a test answer", text)
        self.pairs: set[tuple[str, str, str]] = set()
        """prompts with both answers, of the pairs that are kept"""
        self.find_personal = _detector()

    def keep(self, draft: Draft) -> None:
        """Let no later draft repeat this one."""
        if draft.rejected:
            self.pairs.add((draft.prompt, draft.completion, draft.rejected))
        else:
            self.add("an earlier synthetic prompt", draft.prompt)

    def fault(self, draft: Draft) -> str:
        """Why a row is dropped; empty if it is kept."""
        texts = [text for text in (draft.prompt, draft.completion) if text]
        if not draft.prompt.strip():
            return "empty"
        if any(len(text) > LONGEST for text in texts):
            return f"longer than {LONGEST} characters"
        if any(_REFUSAL.match(text) for text in texts):
            return "a refusal"
        if repeats := self._repeats(draft):
            return repeats
        written = draft.rejected or " ".join(texts)
        if self.find_personal is not None and draft.request and self.find_personal(written):
            return "holds personal data"
        return ""

    def _repeats(self, draft: Draft) -> str:
        """What a draft repeats, as the reason to drop it; empty if nothing."""
        if (draft.prompt, draft.completion, draft.rejected) in self.pairs:
            return "the same as an earlier synthetic pair"
        if draft.completion and trigrams(draft.completion) == trigrams(draft.prompt):
            return "the answer repeats the prompt"
        if draft.request and overlap_of(draft.prompt, draft.request) >= self.threshold:
            return "the request itself"
        if draft.completion and self.answers.nearest(draft.completion)[0] >= self.threshold:
            return "nearly the same as a test answer"
        if draft.method in _NEAR_REAL_PROMPTS and self.tests.nearest(draft.prompt)[0] >= self.threshold:
            return "nearly the same as a test prompt"  # which the real prompt, being nearer, would hide
        if draft.method not in _KEEP_THE_PROMPT:
            overlap, what = self.nearest(draft.prompt)
            if overlap >= (self.threshold if what != "a real prompt" or draft.method != "typos" else 1.1):
                return f"nearly the same as {what}"
        return ""


def overlap_of(text: str, other: str) -> float:
    """The Jaccard overlap of their word trigrams."""
    one, two = trigrams(text), trigrams(other)
    return len(one & two) / len(one | two)


_KEEP_THE_PROMPT = ("corruption",)
"""methods whose prompt is a real one"""
_NEAR_REAL_PROMPTS = (*_KEEP_THE_PROMPT, "typos")
"""methods whose prompt may be as near to a real one as it likes"""


def _detector() -> Callable[[str], bool] | None:
    """Finds personal data; None where Presidio is not installed."""
    if importlib.util.find_spec("presidio_analyzer") is None:
        return None
    from tiebreak.pii.detector import Detector

    detector = Detector()
    return lambda text: any(one.is_sure for one in detector.find(text))


# --- making ---


def make(
    config: SynthesiseConfig, run: Run, writer: Writer | None, drafts: Sequence[Draft], screen: Screen
) -> tuple[list[Made], list[dict[str, Any]], tuple[int, int]]:
    """(kept rows, dropped rows with their reasons, prompt and completion tokens of all that was written)."""
    asked = [draft for draft in drafts if draft.request]
    written = writer.write(run, [(one.id, one.request) for one in asked], "prompts") if writer and asked else []
    by_id = {one.id: answer for one, answer in zip(asked, written, strict=True)}
    rows = [_with_prompt(draft, by_id.get(draft.id)) for draft in drafts]
    dropped: list[dict[str, Any]] = []
    kept: list[Made] = []
    for one, fault in rows:
        reason = fault or screen.fault(one.draft)
        if reason:
            dropped.append(_dropped(one.draft, reason))
            continue
        screen.keep(one.draft)
        kept.append(one)
    if not config.answers or writer is None:
        return kept, dropped, _tokens(written)
    bare = [one for one in kept if not one.draft.completion]
    answers = writer.write(run, [(one.draft.id, one.draft.prompt) for one in bare], "answers") if bare else []
    answered = {one.draft.id: answer for one, answer in zip(bare, answers, strict=True)}
    final: list[Made] = []
    for one in kept:
        if (answer := answered.get(one.draft.id)) is None:
            final.append(one)
            continue
        draft = replace(one.draft, completion=_clean(answer.text))
        fault = answer.fault or ("empty answer" if not draft.completion else _fault_of_answer(screen, draft))
        if fault:
            dropped.append(_dropped(draft, fault))
        else:
            tokens = one.prompt_tokens + answer.prompt_tokens, one.completion_tokens + answer.completion_tokens
            final.append(Made(draft, *tokens))
    return final, dropped, _tokens([*written, *answers])


def _tokens(written: Sequence[Written]) -> tuple[int, int]:
    """(prompt tokens, completion tokens), also of texts that are dropped: they are paid for."""
    return sum(one.prompt_tokens for one in written), sum(one.completion_tokens for one in written)


def forget_personal_data(run: Run, screen: Screen) -> None:
    """Remove an endpoint's texts with personal data from the answers on disk, once nothing is asked again: their rows are
    dropped."""
    path = run.folder / ANSWERS
    if screen.find_personal is None or not path.is_file():
        return
    rows = [row for _, row in read_rows(str(path))]
    if any(held := [screen.find_personal(str(row.get("text", ""))) for row in rows]):
        write_jsonl(path, [{**row, "text": ""} if one else row for row, one in zip(rows, held, strict=True)])


def _fault_of_answer(screen: Screen, draft: Draft) -> str:
    """Faults of a row whose prompt is kept already."""
    return screen.fault(replace(draft, method=_KEEP_THE_PROMPT[0]))


def _with_prompt(draft: Draft, written: Written | None) -> tuple[Made, str]:
    if written is None:
        return Made(draft), "no writer" if draft.request else ""
    made = Made(replace(draft, prompt=_unwrapped(written.text)), written.prompt_tokens, written.completion_tokens)
    return made, written.fault


def _clean(text: str) -> str:
    return normalise(text).strip()


def _unwrapped(text: str) -> str:
    """A generated prompt without a model's additions: an announcement, a number, quotation marks."""
    text = _WRAPPING.sub("", _clean(text)).strip()
    for first, last in ('""', "“”", "„“", "``", "''"):
        if len(text) > 2 and text[0] == first and text[-1] == last:
            text = text[1:-1].strip()
    return text


def _dropped(draft: Draft, reason: str) -> dict[str, Any]:
    secret = reason == "holds personal data"
    shown = {} if secret else {"prompt": draft.prompt, "completion": draft.completion}
    return {"method": draft.method, "number": draft.number, "reason": reason, **shown}


# --- writing ---


def write_rows(config: SynthesiseConfig, run: Run, made: Sequence[Made], writer: str) -> None:
    """The files: what people review, and with `review: none` what training reads."""
    answers, pairs, preferences, demonstrations, prompts = [], [], [], [], []
    for one in made:
        draft = one.draft
        messages = (Message(role="user", content=draft.prompt),)
        tags = [*draft.tags, SYNTHETIC, f"method:{draft.method}"]
        facts = {**_provenance(config, one, writer), "kind": SYNTHETIC}
        source = f"{SYNTHETIC}:{draft.method}"
        free = config.review == "none"
        prompt = Prompt(
            id=prompt_id(messages),
            messages=messages,
            source=source,
            split="train",
            tags=(*tags, *([UNREVIEWED] if free else [])),
        )
        prompts.append(prompt)
        if draft.rejected:
            sides = [_completion(prompt, text, draft.method) for text in (draft.completion, draft.rejected)]
            identity = content_id("pair", prompt.id, *sorted(side.id for side in sides))
            pairs.append(
                Pair(id=identity, prompt_id=prompt.id, messages=messages, completions=tuple(sides), **_of_pair(prompt))
            )
            preferences.append(
                Preference(
                    prompt=messages,
                    chosen=(Message(role="assistant", content=draft.completion),),
                    rejected=(Message(role="assistant", content=draft.rejected),),
                    kind="synthetic",
                    pair_id=identity,
                    prompt_id=prompt.id,
                    source=source,
                    tags=prompt.tags,
                    split="train",
                )
            )
        elif draft.completion:
            demonstrations.append(Demonstration(prompt=prompt, completion=draft.completion))
            asked = [message.model_dump(mode="json", exclude_defaults=True) for message in messages]
            about = {"tags": tags, "source": source, "split": "train", **facts}
            answers.append({"prompt": asked, "response": draft.completion, "task": "review", **about})
    write_jsonl(run.final / "prompts.jsonl", list({one.id: one for one in prompts}.values()))
    write_jsonl(run.final / "answers.jsonl", answers)
    write_jsonl(run.final / "pairs.jsonl", pairs)
    if config.review == "none":
        write_jsonl(run.final / "demonstrations.jsonl", demonstrations)
        write_jsonl(run.final / "preferences.jsonl", preferences)


def _of_pair(prompt: Prompt) -> dict[str, Any]:
    about = {"split": prompt.split, "source": prompt.source, "tags": prompt.tags}
    return {name: value for name, value in about.items() if name in Pair.model_fields}


def _completion(prompt: Prompt, text: str, method: str) -> Completion:
    return Completion(id=content_id("completion", prompt.id, text), text=text, policy=f"{SYNTHETIC}:{method}")


def _provenance(config: SynthesiseConfig, one: Made, writer: str) -> dict[str, Any]:
    draft, cost = one.draft, None
    if config.endpoint is not None:
        cost = config.endpoint.cost_of(one.prompt_tokens, one.completion_tokens)
    return {
        "method": draft.method,
        "paper": PAPERS[draft.method],
        "writer": writer if draft.request or one.completion_tokens else "rules",
        "made_from": list(draft.seeds),
        "how": draft.how,
        "seed": config.seed,
        "tokens": one.prompt_tokens + one.completion_tokens,
        **({} if cost is None else {"cost": cost}),
    }


# --- the report ---


def build_report(
    config: SynthesiseConfig,
    writer: Writer | None,
    drafts: Sequence[Draft],
    made: Sequence[Made],
    dropped: Sequence[Mapping[str, Any]],
    tokens: tuple[int, int],
    material: Material,
) -> dict[str, Any]:
    """Counts of rows tried, made and dropped, the cost, and the diversity beside that of the real prompts.

    Args:
        tokens: of all that the writer was asked and wrote.
    """
    tried = Counter(one.method for one in drafts)
    kept = Counter(one.draft.method for one in made)
    real = [_text(one) for one in material.prompts]
    screen = Screen(Material(material.prompts), (), 1.0)
    own = [one.draft.prompt for one in made if one.draft.method not in _KEEP_THE_PROMPT]
    return {
        "counts": {"tried": len(drafts), "kept": len(made), "dropped": len(dropped)},
        "methods": {name: {"tried": tried[name], "kept": kept[name], "paper": PAPERS[name]} for name in config.methods},
        "dropped": dict(Counter(str(one["reason"]) for one in dropped).most_common()),
        "writer": writer.name if writer else "",
        "review": config.review,
        "tokens": {"prompt": tokens[0], "completion": tokens[1]},
        "cost": config.endpoint.cost_of(*tokens) if config.endpoint else None,
        "personal_data": "looked for" if screen.find_personal else "not looked for: pip install 'tiebreak[pii]'",
        "diversity": {
            "real": diversity(real),
            "synthetic": {**diversity(own), "overlap_with_real": _mean([screen.nearest(text)[0] for text in own])},
        },
        "examples": [
            {
                "method": one.draft.method,
                "how": one.draft.how,
                "prompt": one.draft.prompt,
                "completion": one.draft.completion,
            }
            | ({"rejected": one.draft.rejected} if one.draft.rejected else {})
            for one in made
        ][:200],
    }


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """Share of word pairs that are distinct (Li et al. 2016, distinct-2), and the words of a median prompt."""
    words = [re.findall(r"\w+", text.casefold()) for text in texts]
    pairs = [pair for one in words for pair in pairwise(one)]
    return {
        "prompts": len(texts),
        "distinct_2": round(len(set(pairs)) / len(pairs), 3) if pairs else 0.0,
        "words_median": statistics.median(map(len, words)) if words else 0,
    }


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 3) if values else 0.0


def _text(prompt: Prompt) -> str:
    return text_of([message for message in prompt.messages if message.role == "user"][-1:])


def _say_report(config: SynthesiseConfig, run: Run, report: Mapping[str, Any]) -> None:
    reasons = ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items())
    cost = f", cost {report['cost']:.4g}" if report["cost"] is not None else ""
    counts, total = report["counts"], sum(report["tokens"].values())
    say(
        f"{counts['kept']} of {counted(counts['tried'], 'synthetic row')} kept; dropped {counts['dropped']}"
        f"{f' ({reasons})' if reasons else ''}; {total:,} tokens{cost}",
        f"report: {(run.folder / 'report.html').resolve().as_uri()}",
        "not reviewed by people (review: none): training takes these rows, and reports say so"
        if config.review == "none"
        else "training refuses these rows until people have reviewed them",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """`tiebreak synthesise`, or `python -m sft.synthesis.synthesise`."""
    stage_main("synthesise", SynthesiseConfig, synthesise, arguments)


if __name__ == "__main__":
    main()
