"""Talks to a finished policy in the terminal, or beside it to a second one, with a reward model's score.

    tiebreak chat runs/quickstart/dpo
    tiebreak chat runs/quickstart/dpo --against runs/quickstart/sft --reward-model runs/quickstart/reward
    printf 'Why are my basil leaves pale?\\n' | tiebreak chat runs/quickstart/dpo

Template, end tokens and sampling are those of training and evaluation. Answers go to standard output, all else to standard
error.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tiebreak.command.help import print_help, wants_help
from tiebreak.config import load_config
from tiebreak.errors import ConfigError, DataError, TiebreakError
from tiebreak.files import write_jsonl
from tiebreak.messages import Message
from tiebreak.process.ending import exit_with_message
from tiebreak.process.settings import while_importing
from tiebreak.serving.configuration import ChatArguments
from tiebreak.terminal import complain, has_colours, paint, plain, say

if TYPE_CHECKING:
    from tiebreak.library import Policy, RewardModel

COMMANDS = {
    "/system TEXT": "give the system message, and begin again",
    "/clear": "begin again",
    "/save FILE": "write the conversations as JSON Lines",
    "/help": "these lines",
    "/exit": "leave; so does Ctrl-D",
}
_INCOMPLETE = "\ufffd"
"""what a tokenizer decodes part of a character to"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `tiebreak chat`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_message(lambda: print_help(["chat", *words]) if wants_help(words) else _run(words))


def _run(words: list[str]) -> None:
    if not words or words[0].startswith("--"):
        raise ConfigError("chat takes one policy before its flags: tiebreak chat RUN [--against RUN]")
    arguments = load_config(ChatArguments, words[1:], "chat")
    with while_importing():
        from tiebreak.library import load_policy, load_reward_model

    options: Any = {"precision": arguments.precision, "trust_remote_code": arguments.trust_remote_code}
    names = [words[0], *([arguments.against] if arguments.against else [])]
    speakers = [Speaker(name, load_policy(name, **options)) for name in names]
    judge = load_reward_model(arguments.reward_model, **options) if arguments.reward_model else None
    session = Session(arguments, speakers, judge, sys.stdout)
    say("/help lists the commands")
    with _interrupting():
        session.run(_lines())


@contextmanager
def _interrupting() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, whatever it does elsewhere."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _require_text(line: str) -> None:
    """Refuse bytes that are no text, which Python reads as lone surrogates.

    Raises:
        DataError: there are some.
    """
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"this line is not UTF-8 (at character {error.start + 1}), so it is not answered: write it again, or convert "
            "its file with iconv"
        ) from error


def _lines() -> Iterator[str]:
    """Typed lines, or those of standard input; `Session.run` refuses those that are no text."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if not sys.stdin.isatty():
        for number, line in enumerate(sys.stdin):
            yield (line if number else line.removeprefix("\ufeff")).rstrip("\n")  # a byte-order mark is no text
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - arrow keys, and earlier lines
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            say("", "/exit leaves")


@dataclass
class Speaker:
    """A policy, and its side of the conversation."""

    name: str
    policy: Policy
    history: list[Message] = field(default_factory=list)


@dataclass
class Session:
    """A conversation, or two side by side."""

    arguments: ChatArguments
    speakers: list[Speaker]
    judge: RewardModel | None
    output: TextIO
    turns: int = 0

    def __post_init__(self) -> None:
        self.begin(self.arguments.system)

    def begin(self, system: str | None) -> None:
        """Clear the conversation."""
        self.system = system
        for speaker in self.speakers:
            speaker.history = [Message(role="system", content=system)] if system else []

    def run(self, lines: Iterator[str]) -> None:
        """Answer every line, until one says /exit."""
        for line in lines:
            if line.strip() == "/exit":
                return
            try:
                _require_text(line)
                if line.startswith("/"):
                    self.command(*line.split(maxsplit=1))
                elif line.strip():
                    self.ask(line.strip())
            except TiebreakError as error:
                complain(f"error: {error}")
            except KeyboardInterrupt:
                say("", "stopped")

    def command(self, name: str, value: str = "") -> None:
        """Carry out a command, a line that begins with a slash.

        Raises:
            ConfigError: there is no such command, or it needs a value.
            DataError: the file exists.
        """
        if name == "/clear":
            self.begin(self.system)
        elif name == "/system":
            self.begin(value.strip() or None)
        elif name == "/help":
            say(*(f"{one:<14}{meaning}" for one, meaning in COMMANDS.items()))
        elif name == "/save" and value.strip():
            self.save(Path(value.strip()))
        else:
            raise ConfigError(f"no such command: {name}{' FILE' if name == '/save' else ''} (/help lists them)")

    def save(self, path: Path) -> None:
        """Write each conversation as a row.

        Raises:
            DataError: the file exists, or cannot be written.
        """
        if path.exists():
            raise DataError(f"{path} exists, and nothing is overwritten: give another name")
        rows = [
            {
                "messages": [
                    one.model_dump(exclude_none=True, exclude_defaults=True) | {"role": one.role}
                    for one in speaker.history
                ],
                "policy": speaker.name,
                "policy_id": speaker.policy.source.id,
            }
            for speaker in self.speakers
        ]
        try:
            write_jsonl(path, rows)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from error
        say(f"saved: {path}")

    def ask(self, text: str) -> None:
        """Put a question to every policy."""
        self.turns += 1
        for speaker in self.speakers:
            if len(self.speakers) > 1:
                self.show(f"{speaker.name}:\n", "bold")
            self.answer(speaker, Message(role="user", content=text))

    def answer(self, speaker: Speaker, question: Message) -> None:
        """Write an answer as it is drawn. One that is stopped or cut off is kept in part.

        Raises:
            TiebreakError: the question is not kept.
        """
        from tiebreak.packed.generation import row_seed, stream_completion

        policy = speaker.policy
        messages = [*speaker.history, question]
        prompt = policy.chat.encode_prompt(messages)
        ids: list[int] = []
        shown = _AnswerDisplay(self)
        seed = row_seed(self.arguments.seed, "chat", self.turns)
        try:
            for token in stream_completion(
                policy.model,
                prompt,
                seed,
                self.arguments.sampling,
                stop_ids=policy.chat.stop_ids,
                textless_ids=policy.chat.textless_ids,
                pad_id=policy.chat.pad_id,
            ):
                ids.append(token)
                read = policy.chat.read(ids)
                shown.update(read.reasoning or "", read.text)
        except KeyboardInterrupt:
            say("", "stopped")
        read = policy.chat.read(ids)
        shown.finish(read.reasoning or "", read.text)
        if not read.text:
            say("no answer: the question is not kept")
            return
        if self.judge is not None:
            self.show(f"score {self.score(messages, ids, policy):+.3f}\n", "dim")
        answer = Message(role="assistant", content=read.text, reasoning_content=read.reasoning)
        speaker.history = [*messages, answer]

    def score(self, messages: Sequence[Message], ids: Sequence[int], policy: Policy) -> float:
        """The reward model's score of an answer."""
        from tiebreak.library import Answer, score

        read = policy.chat.read(ids)
        answer = Answer(read.text, read.finished, tuple(ids), policy.chat.tokenizer_sha256)
        if self.judge is None:
            raise ValueError("there is no reward model")
        [found] = score(self.judge, [messages], [answer])
        return found

    def show(self, text: str, style: str = "") -> None:
        """Write to standard output at once."""
        self.output.write(paint(text, style) if style and has_colours(self.output) else text)
        self.output.flush()


class _AnswerDisplay:
    """An answer on the screen: new text is written, a thought dimmed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._written = {"dim": "", "": ""}

    def update(self, thought: str, text: str) -> None:
        """Write what is new."""
        for style, whole in (("dim", thought), ("", text)):
            now, before = plain(whole).rstrip(_INCOMPLETE), self._written[style]
            if now.startswith(before) and now != before:
                apart = "\n\n" if not style and not before and self._written["dim"] else ""
                self._session.show(apart + now[len(before) :], style)
                self._written[style] = now

    def finish(self, thought: str, text: str) -> None:
        """Write the rest; or all of it, if a later token changed how an earlier one reads."""
        self.update(thought, text)
        if not plain(text).startswith(self._written[""]):
            self._session.show(f"\n{plain(text)}")
        self._session.show("\n")
