"""A byte-level BPE tokenizer as GGUF's metadata: tokens, merges, how text is split before merging, special tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf

from tiebreak.errors import HandoffError
from tiebreak.export.alone import STOPS_BY_TEXT
from tiebreak.export.model_to_export import ModelToExport

_LATER = "use --to safetensors and llama.cpp's convert_hf_to_gguf.py"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: Mapping[tuple[str, bool], str] = {
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
    (_WORDS + r"\p{N}{1,3}" + _REST, False): "dbrx",
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
}
"""a tokenizer's regular expression, and whether it takes whole words without merging → llama.cpp's name"""
END_SLOTS = ("eos", "eot", "eom")
"""the end tokens that a file can name"""


@dataclass(frozen=True)
class Vocabulary:
    """What a file says about its tokenizer."""

    split: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: Mapping[str, int]
    """the kind of a special token (bos, eos, eot, …) → its id"""
    adds_bos: bool
    template: str

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write it into a file's metadata."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for kind, number in self.special.items():
            getattr(writer, f"add_{kind}_token_id")(number)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_chat_template(self.template)


def read_vocabulary(origin: ModelToExport, size: int) -> Vocabulary:
    """A run's tokenizer.

    Args:
        size: number of tokens that the model has weights for.

    Raises:
        HandoffError: it is of another kind, or an end token would be lost.
    """
    tokenizer, name = origin.chat.tokenizer, origin.source.name
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise HandoffError(
            f"{name}: only tokenizers with a fast backend (tokenizer.json) are written to GGUF; {_LATER}"
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    split = split_of(state, name)
    tokens, types = _tokens(tokenizer, size)
    merges = [one if isinstance(one, str) else " ".join(one) for one in state["model"]["merges"]]
    special = {
        kind: int(number)
        for kind, number in (
            ("bos", tokenizer.bos_token_id),
            ("unk", tokenizer.unk_token_id),
            ("pad", tokenizer.pad_token_id),
        )
        if number is not None
    }
    begins = list(tokenizer("x")["input_ids"])[:1]
    return Vocabulary(
        split, tokens, types, merges, special | _ends(origin), begins == [tokenizer.bos_token_id], origin.template
    )


def _ends(origin: ModelToExport) -> dict[str, int]:
    """The end tokens, that of the template first. llama.cpp stops at those that the file names, and at some by their text.

    Raises:
        HandoffError: there are more.
    """
    named = dict(zip(END_SLOTS, origin.ends, strict=False))
    pairs = zip(origin.ends, origin.end_texts, strict=True)
    lost = [text for end, text in pairs if end not in named.values() and text not in STOPS_BY_TEXT]
    if lost:
        raise HandoffError(
            f"{origin.source.name}: a GGUF file names {len(END_SLOTS)} end tokens, so llama.cpp would not stop at "
            f"{', '.join(lost)}: use --to ollama, whose Modelfile has all"
        )
    return named


def split_of(state: Mapping[str, Any], name: str) -> str:
    """llama.cpp's name for how a tokenizer splits text.

    Args:
        state: its `tokenizer.json`.

    Raises:
        HandoffError: it is not byte-level BPE, or splits as none that llama.cpp is known to have.
    """
    steps = state["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if state["model"]["type"] != "BPE" or not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise HandoffError(f"{name}: only byte-level BPE tokenizers are written to GGUF, and this is another; {_LATER}")
    if (state["normalizer"] or {}).get("type") in (None, "NFC"):
        by_level = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and by_level:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and by_level and steps[0].get("individual_digits"):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not by_level and steps[0].get("behavior") == "Isolated":
            pattern = steps[0]["pattern"].get("Regex", "")
            found = _SPLITS.get((pattern, bool(state["model"].get("ignore_merges"))))
            if found:
                return found
    raise HandoffError(f"{name}: its tokenizer splits text in a way that is not known to be llama.cpp's; {_LATER}")


def _tokens(tokenizer: Any, size: int) -> tuple[list[str], list[int]]:
    """Tokens by id with their types, as llama.cpp's converter makes them."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(size):
        token, kind = by_id.get(number, f"[PAD{number}]"), gguf.TokenType.NORMAL
        if number not in by_id:
            kind = gguf.TokenType.UNUSED
        elif number in added:
            named = added[number].special or (token.startswith("<|") and token.endswith("|>"))
            kind = gguf.TokenType.CONTROL if named else gguf.TokenType.USER_DEFINED
        tokens.append(token)
        types.append(int(kind))
    return tokens, types
