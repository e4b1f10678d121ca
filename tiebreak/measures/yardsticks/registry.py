"""The yardsticks that can be named in a configuration, an entry each.

    yardsticks: [rubric, reward, "ifeval:data/instructions.jsonl", rougeL, mine:score]

A name may be followed by a colon and an argument, such as a file. What is not an entry is a user's function,
`package.module:function`, called with (prompt, answer), and with whichever of `messages`, `references`, `tags` and `source`
are among its parameters. A new yardstick is an entry of ENTRIES.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tiebreak.errors import ConfigError
from tiebreak.measures.yardstick import RUBRIC, RUBRIC_NAME, Yardstick, find_yardstick, parameters_of, shortened
from tiebreak.measures.yardsticks import bias, instructions, references, wording
from tiebreak.measures.yardsticks.inputs import Function, Values, YardstickInput

Better = Literal["higher", "lower", "neither"]
Of = Literal["text", "reward", "logps", "pairs", "model"]


@dataclass(frozen=True)
class Entry:
    """A yardstick's name, what its values mean, and what it needs."""

    title: str
    """in the report"""
    better: Better
    scale: tuple[float, float] | None = None
    """the lowest and highest value; None: open"""
    build: Callable[[str], Function] | None = None
    """from its argument; None: it is measured by a model, or is the rubric"""
    of: Of = "text"
    """what it is computed from: texts, the reward model's scores, a model's log-probabilities, judgments of pairs, a
    model that reads texts"""
    argument: str = ""
    """what its argument is, such as FILE; empty: it takes none"""
    default: str | None = None
    """of the argument; None: it must be given"""
    needs: Literal["", "references", "samples"] = ""


OFFERED = ("messages", "references", "tags", "source")
"""arguments of users' functions beside prompt and answer"""
SHARE = (0.0, 1.0)
PERCENT = (0.0, 100.0)

ENTRIES: dict[str, Entry] = {
    RUBRIC: Entry(RUBRIC_NAME, "higher", SHARE),
    "reward": Entry("Score of the reward model", "higher", of="reward"),
    "judge": Entry("Preferred by the model judge", "higher", SHARE, of="pairs", argument="FOLDER"),
    "people": Entry("Preferred by people", "higher", SHARE, of="pairs", argument="FOLDER"),
    "rouge": Entry("ROUGE", "higher", SHARE, references.rouge, argument="TYPE", default="rougeL", needs="references"),
    "bleu": Entry("BLEU", "higher", PERCENT, references.bleu, needs="references"),
    "chrf": Entry("chrF", "higher", PERCENT, references.chrf, needs="references"),
    "meteor": Entry("METEOR (exact, stem)", "higher", SHARE, references.meteor, needs="references"),
    "exact_match": Entry("Exact match", "higher", SHARE, references.exact_match, needs="references"),
    "token_f1": Entry("Token F1", "higher", SHARE, references.token_f1, needs="references"),
    "bertscore": Entry("BERTScore", "higher", of="model", argument="MODEL", needs="references"),
    "ifeval": Entry("All instructions followed", "higher", SHARE, instructions.all_followed, argument="FILE"),
    "ifeval_loose": Entry(
        "All instructions followed, loosely",
        "higher",
        SHARE,
        partial(instructions.all_followed, loose=True),
        argument="FILE",
    ),
    "instructions": Entry("Instructions followed", "higher", SHARE, instructions.share_followed, argument="FILE"),
    "refusal": Entry("Refusals", "neither", SHARE, wording.refusal),
    "over_refusal": Entry("Refusals of safe prompts", "lower", SHARE, wording.over_refusal),
    "compliance": Entry("Unsafe prompts answered", "lower", SHARE, wording.compliance),
    "keywords": Entry("Answers with keywords", "lower", SHARE, wording.keywords, argument="FILE"),
    "toxicity": Entry("Toxicity", "lower", SHARE, of="model", argument="MODEL"),
    "toxic_words": Entry("Answers with toxic words", "lower", SHARE, wording.toxic_words),
    "bbq": Entry("Right answers to BBQ's questions", "higher", SHARE, bias.accuracy, argument="FILE"),
    "bbq_bias": Entry("BBQ's bias score", "neither", (-1.0, 1.0), bias.bias, argument="FILE"),
    "pii": Entry("Answers with personal data", "lower", SHARE, wording.personal_data, argument="KINDS", default=""),
    "language": Entry("Answers in the language", "higher", SHARE, wording.language, argument="CODE"),
    "tone": Entry("Tone", "neither", (-1.0, 1.0), wording.tone),
    "length": Entry("Length in words", "neither", build=wording.length),
    "repetition": Entry("Repetition", "lower", SHARE, wording.repetition),
    "distinct_n": Entry("Distinct n-grams", "higher", SHARE, wording.distinct_n, argument="N", default="2"),
    "self_bleu": Entry("Self-BLEU", "lower", PERCENT, wording.self_bleu, needs="samples"),
    "perplexity": Entry("Perplexity", "lower", of="logps", argument="MODEL", default=""),
    "bits_per_byte": Entry("Bits per byte", "lower", of="logps", argument="MODEL", default=""),
}
COMPARED = frozenset(name for name, entry in ENTRIES.items() if entry.of == "pairs")
"""yardsticks that compare an answer with the baseline's"""


@dataclass(frozen=True)
class Named:
    """A yardstick as a configuration names it."""

    source: str
    name: str
    """its entry; empty: a user's function"""
    argument: str

    @property
    def entry(self) -> Entry:
        return ENTRIES.get(self.name, _USERS)

    @property
    def file(self) -> str | None:
        """The file that its argument names; None if it names none."""
        return self.argument if self.entry.argument == "FILE" else None

    @property
    def model(self) -> str:
        """The model that its argument names, without a label or layer after #; empty if it names none."""
        return self.argument.partition("#")[0] if self.entry.of in ("logps", "model") else ""


_USERS = Entry("", "higher")


def parse(source: str) -> Named:
    """What a configuration's entry names.

    Raises:
        ValueError: there is no such yardstick, or its argument is missing or not wanted.
    """
    name, colon, argument = source.partition(":")
    if name not in ENTRIES:
        if colon:
            return Named(source, "", "")
        near = difflib.get_close_matches(name, ENTRIES, n=1)
        raise ValueError(
            f"no yardstick {name!r}{f'; did you mean {near[0]}?' if near else '.'} There are {', '.join(ENTRIES)}, and "
            "functions of yours, as package.module:function"
        )
    entry = ENTRIES[name]
    if argument and not entry.argument:
        raise ValueError(f"{name} takes no argument, and has {argument!r}")
    if not argument and entry.argument and entry.default is None:
        raise ValueError(f"{name} needs an argument: {name}:{entry.argument}")
    return Named(source, name, argument or entry.default or "")


@dataclass(frozen=True)
class Measure:
    """A yardstick that is ready to measure."""

    named: Named
    title: str
    better: Better
    scale: tuple[float, float] | None
    function: Function | None
    """None: a model measures"""
    users: Yardstick | None = None
    """the rubric or a user's function"""

    @property
    def source(self) -> str:
        return self.named.source


def build_measure(named: Named, beside: Path | None = None) -> Measure:
    """The yardstick, with its files read.

    Args:
        beside: the configuration file's folder, where functions are looked for.

    Raises:
        ConfigError: there is no such function or file, or a package is not installed.
    """
    entry = named.entry
    if named.name in ("", RUBRIC):
        found = find_yardstick(named.source, beside, "yardsticks", OFFERED)
        better: Better = getattr(found.function.call, "better", "higher")
        if better not in ("higher", "lower", "neither"):
            raise ConfigError(f"yardsticks: {named.source}.better is {better!r}: it is higher, lower or neither")
        title = RUBRIC_NAME if named.name == RUBRIC else found.name
        return Measure(named, title, better, found.scale, _users_function(found), found)
    title = entry.title
    if named.argument and named.argument != entry.default:
        title = f"{title} ({shortened(named.argument, 40)})"
    function = entry.build(named.argument) if entry.build else None
    return Measure(named, title, entry.better, entry.scale, function)


def _users_function(yardstick: Yardstick) -> Function:
    wanted = parameters_of(yardstick.function.call) & set(OFFERED)

    def measure(asked: YardstickInput, answers: Sequence[str]) -> Values:
        arguments: dict[str, Any] = {
            "messages": [message.model_dump() for message in asked.prompt.messages],
            "references": list(asked.references),
            "tags": list(asked.prompt.tags),
            "source": asked.prompt.source,
        }
        given = {name: arguments[name] for name in wanted}
        whose = f"an answer to prompt {asked.prompt.id} ({shortened(asked.question)!r})"
        return [yardstick.measure(asked.question, answer, whose, **given).value for answer in answers]

    return measure
