"""Sampling: batched, with a seed per row, and no computation on finished rows.

Each row samples from its own generator, seeded by the caller, so a completion does not depend on the other rows of its
batch (except for the last bits of a matrix product), and an interrupted sampling stage resumes to the same result.

A step costs only its matrix products: keys and values are written in place, a prompt shared by several rows is read
once, and waiting rows take the places of finished ones, so the batch stays full to the end.

torch.compile is not used. The window's rows and columns are Python numbers that change with every step: a step of a
two-layer Llama breaks into 25 graphs (torch 2.13), which sample the same tokens no faster (0.49 s against 0.44 s for
224 tokens, traced and not yet lowered to C++). It would need a window of fixed size, computed in full at every step,
and so compute on finished rows.
"""

from __future__ import annotations

import hashlib
import inspect
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from tiebreak.config import SamplingConfig
from tiebreak.errors import HandoffError
from tiebreak.packed.forward import TOKENS_PER_PASS, hidden_states, packs
from tiebreak.packed.fused import fuse_layers
from tiebreak.packed.lm_head import head_of
from tiebreak.packed.logprobs import selected_logps
from tiebreak.packed.packing import pack_sequences
from tiebreak.packed.parts import whole_model
from tiebreak.packed.positions import require_room
from tiebreak.packed.proof import FAILURES
from tiebreak.terminal import say

BATCHES_A_CALL = 4
"""multiple of `batch_size` that a stage hands over at once, and stores together"""
TRIED_TOKENS = 12
MOST_TRIED_TOKENS = 64
"""length of the row in a test of a model's cache: longer than its window, if that is short"""
ADMITTED_TOGETHER = 0.25
"""share of the batch that must be free before waiting rows are admitted: a pass over a few short prompts is inefficient"""


class NotFiniteError(HandoffError):
    """A model gives no probabilities to draw from."""


@dataclass(frozen=True)
class SampledCompletion:
    """One completion as token ids, including its end-of-turn token if there is one."""

    ids: list[int]
    finished: bool
    logps: list[float]
    """log-probability of each token under softmax(logits / temperature), before top_k and top_p, with the ids that are
    never drawn; temperature 1 if greedy"""
    textless_share: float = 0.0
    """probability of the ids without text, which are never drawn; the mean over its tokens"""


def row_seed(*parts: object) -> int:
    """A 63-bit seed from a row's identity, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@torch.no_grad()
def sample_completions(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    stop_ids: Collection[int],
    pad_id: int,
    batch_size: int,
    textless_ids: Collection[int] = (),
    on_done: Callable[[int], object] = lambda rows: None,
) -> list[SampledCompletion]:
    """One completion for each prompt, in the prompts' order.

    Args:
        stop_ids: tokens that end a completion (tiebreak.chat.chat.Chat.stop_ids).
        batch_size: rows generated at once; memory depends on it.
        textless_ids: ids that are never drawn (tiebreak.chat.chat.Chat.textless_ids).
        on_done: called with the number of rows that a step finished.
    """
    waiting = sorted(range(len(prompts)), key=lambda n: (len(prompts[n]), *prompts[n]))  # the longest is popped first
    slots = min(batch_size, len(prompts))
    rows: list[_Row] = []
    results: dict[int, SampledCompletion] = {}
    longest = max(map(len, prompts), default=0)
    require_room(whole_model(model).config, prompts, sampling.max_new_tokens)
    store = find_store(model, pad_id)
    window = store(slots, longest, sampling.max_new_tokens, reused=len(prompts) > slots)
    logits: Tensor | None = None
    while rows or waiting:
        free = slots - len(rows)
        if waiting and (not rows or free >= min(len(waiting), max(1, int(slots * ADMITTED_TOGETHER)))):
            entering = [waiting.pop() for _ in range(min(free, len(waiting)))]
            first = window.admit(model, [prompts[n] for n in entering], pad_id)
            logits = first if logits is None or not rows else torch.cat([logits, first])
            rows += [_Row(n, _uniforms(seeds[n], sampling.max_new_tokens)) for n in entering]
        if logits is None:
            raise RuntimeError("no row was admitted")
        uniforms = torch.tensor([row.uniforms[len(row.ids)] for row in rows], dtype=torch.float64)
        textless = _columns(textless_ids, logits)
        tokens = draw(_with_text(logits, textless), uniforms.to(logits.device), sampling)
        logps = selected_logps(logits / (sampling.temperature or 1.0), tokens)
        shares = _share_of(textless, logits / (sampling.temperature or 1.0))
        for row, token, logp, share in zip(rows, tokens.tolist(), logps.tolist(), shares, strict=True):
            row.ids.append(token)
            row.logps.append(logp)
            row.textless += share
        done = [at for at, row in enumerate(rows) if row.ids[-1] in stop_ids or len(row.ids) == sampling.max_new_tokens]
        results |= {rows[at].place: rows[at].completion(stop_ids) for at in done}
        if done:
            on_done(len(done))
        kept = window.release(done)
        rows = [rows[at] for at in kept]
        if rows:
            logits = window.step(model, tokens[kept])
    found = [results[n] for n in range(len(prompts))]
    _report_textless(model, found, len(textless_ids))
    return found


@torch.no_grad()
def stream_completion(
    model: nn.Module,
    prompt: Sequence[int],
    seed: int,
    sampling: SamplingConfig,
    *,
    stop_ids: Collection[int],
    pad_id: int,
    textless_ids: Collection[int] = (),
) -> Iterator[int]:
    """The tokens of one completion as they are drawn: those of `sample_completions`, its end token among them."""
    require_room(whole_model(model).config, [prompt], sampling.max_new_tokens)
    window = find_store(model, pad_id)(1, len(prompt), sampling.max_new_tokens, reused=False)
    logits = window.admit(model, [prompt], pad_id)
    for number, uniform in enumerate(_uniforms(seed, sampling.max_new_tokens), start=1):
        allowed = _with_text(logits, _columns(textless_ids, logits))
        tokens = draw(allowed, torch.tensor([uniform], dtype=torch.float64, device=logits.device), sampling)
        token = int(tokens)
        yield token
        if token in stop_ids or number == sampling.max_new_tokens:
            return
        window.release([])
        logits = window.step(model, tokens)


@dataclass
class _Row:
    """An unfinished completion. Row n of the list is in slot n of the window."""

    place: int
    """index in the caller's order"""
    uniforms: list[float]
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    textless: float = 0.0
    """sum of the probabilities of ids without text"""

    def completion(self, stop_ids: Collection[int]) -> SampledCompletion:
        """What was sampled."""
        return SampledCompletion(self.ids, self.ids[-1] in stop_ids, self.logps, self.textless / len(self.ids))


def _uniforms(seed: int, steps: int) -> list[float]:
    """The numbers in [0, 1) that a row's tokens are sampled with, one per step, from its own generator."""
    drawn: list[float] = torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn


# --- ids without text


REPORTED_SHARE = 1e-3
"""share of the probability from which a line says that ids without text are never drawn"""
REPORTED = "_tiebreak_textless"
"""attribute of a model for which the line was printed"""


def _columns(textless_ids: Collection[int], logits: Tensor) -> Tensor | None:
    """The ids as an index of the logits' columns; None if there are none."""
    inside = [number for number in textless_ids if number < logits.shape[-1]]
    return torch.tensor(inside, device=logits.device) if inside else None


def _with_text(logits: Tensor, textless: Tensor | None) -> Tensor:
    """The logits with −∞ for ids without text, before temperature, top_k and top_p."""
    return logits if textless is None else logits.index_fill(-1, textless, -torch.inf)


def _share_of(textless: Tensor | None, logits: Tensor) -> list[float]:
    """The probability of ids without text in each row."""
    if textless is None:
        return [0.0] * len(logits)
    logits = logits.float()
    shares: list[float] = (logits[:, textless].logsumexp(-1) - logits.logsumexp(-1)).exp().tolist()
    return shares


def _report_textless(model: nn.Module, sampled: Sequence[SampledCompletion], count: int) -> None:
    share = statistics.fmean(one.textless_share for one in sampled) if sampled and count else 0.0
    whole = whole_model(model)
    if share >= REPORTED_SHARE and not whole.__dict__.get(REPORTED):
        whole.__dict__[REPORTED] = True
        say(
            f"{count} of the model's ids have no token in its tokenizer and {share:.1%} of its probability: they are never "
            "drawn, but log-probabilities count them"
        )


class Store(Protocol):
    """A model's memory of unfinished rows. Row n is in slot n."""

    def __init__(self, slots: int, longest: int, max_new_tokens: int, *, reused: bool) -> None:
        """Room for `slots` rows with prompts of up to `longest` tokens; `reused`: rows will replace others."""

    def admit(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """Read prompts into free slots. Logits of the next token, shape (prompts, vocabulary)."""

    def step(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Write one token per row, shape (rows,). Logits of the next token, shape (rows, vocabulary)."""

    def release(self, done: Sequence[int]) -> list[int]:
        """Free the slots of finished rows. Returns the row now in each slot."""


class _Window:
    """Keys and values of unfinished rows: one buffer per layer, of shape (slots, heads, columns, head size).

    All rows write into the same column, so a step is one assignment per layer, whereas `DynamicCache` copies all previous
    columns. A row's tokens are in the columns from its start to the current one; earlier columns are masked.
    """

    def __init__(self, slots: int, longest: int, max_new_tokens: int, *, reused: bool) -> None:
        self.slots = slots
        self.longest = longest
        self.columns = longest + max_new_tokens * (2 if reused else 1)
        self.next = longest  # the next column
        self.starts: list[int] = []
        self.layers: list[_WindowLayer] = []

    @property
    def first(self) -> int:
        """The first column that any row still reads."""
        return min(self.starts, default=self.next)

    def admit(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """Read prompts into free slots. Logits of the next token, shape (prompts, vocabulary)."""
        different = list(dict.fromkeys(map(tuple, prompts)))
        number = {prompt: at for at, prompt in enumerate(different)}
        sources = torch.tensor([number[tuple(p)] for p in prompts], device=next(model.parameters()).device)
        read = read_prompts(model, different, pad_id)
        if not self.layers:
            self.layers = [_WindowLayer(self, layer) for layer in read.layers]
        width = max(map(len, different))
        here = (
            slice(len(self.starts), len(self.starts) + len(prompts)),
            slice(None),
            slice(self.next - width, self.next),
        )
        for layer, made in zip(self.layers, read.layers, strict=True):
            for buffer, values in zip(layer.buffers, made, strict=True):
                buffer[here] = values[sources.to(values.device)]
        self.starts += [self.next - len(p) for p in prompts]
        return read.logits[sources]

    def step(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Write one token per row, shape (rows,). Logits of the next token, shape (rows, vocabulary)."""
        if self.next == self.columns:
            self._shift()
        starts = torch.tensor(self.starts, device=tokens.device)[:, None]
        mask = (torch.arange(self.first, self.next + 1, device=tokens.device) >= starts).long()
        logits = _last_logits(model, tokens[:, None], mask, self.next - starts, Cache(layers=list(self.layers)))
        self.next += 1
        return logits

    def release(self, done: Sequence[int]) -> list[int]:
        """Free the slots of finished rows; the last rows move into them. Returns the row now in each slot."""
        rows = list(range(len(self.starts)))
        for slot in reversed(done):
            last = len(rows) - 1
            if slot != last:
                for layer in self.layers:
                    for buffer in layer.buffers:
                        buffer[slot, :, self.first : self.next] = buffer[last, :, self.first : self.next]
                rows[slot], self.starts[slot] = rows[last], self.starts[last]
            rows.pop()
            self.starts.pop()
        return rows

    def _shift(self) -> None:
        """Move everything left, over columns that no row reads any more."""
        by = min(self.first, self.next - self.longest)
        for layer in self.layers:
            for buffer in layer.buffers:
                buffer[:, :, : self.next - by] = buffer[:, :, by : self.next].clone()
        self.starts = [start - by for start in self.starts]
        self.next -= by


class _WindowLayer(DynamicLayer):
    """One layer of the window, as a model's attention sees it: the unfinished rows, from their first column on."""

    def __init__(self, window: _Window, like: Sequence[Tensor]) -> None:
        """Buffers like the model's keys and values of a prompt; none for a layer that shares another's."""
        super().__init__()
        self._window = window
        self.is_initialized = True
        self.buffers = [made.new_zeros(window.slots, made.shape[1], window.columns, made.shape[3]) for made in like]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write one token per row, shape (rows, heads, 1, head size); returns everything that the rows read."""
        window = self._window
        keys, values = self.buffers
        rows, read = len(key_states), slice(window.first, window.next + 1)
        keys[:rows, :, window.next] = key_states[:, :, 0]
        values[:rows, :, window.next] = value_states[:, :, 0]
        return keys[:rows, :, read], values[:rows, :, read]

    def get_seq_length(self) -> int:
        """Columns before the current one."""
        return self._window.next - self._window.first


# --- models with more state than keys and values


class _Group:
    """Rows of one length, in the model's own cache: without padding, which a recurrent state would read as text."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        """shape (rows, tokens so far)"""
        self.cache: dict[str, Any] = {}

    def read(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Feed new tokens to the model; logits of the next token, shape (rows, vocabulary)."""
        made = model(input_ids=ids, use_cache=True, **self.cache, **_fewest_outputs(model))
        self.cache = {name: made[name] for name in CACHES if made.get(name) is not None}
        if not self.cache:
            raise NotImplementedError("it returns no cache")
        logits: Tensor = made.logits
        return logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.ids = self.ids[rows]
        for cache in self.cache.values():
            cache.reorder_cache(rows)


class _OwnCaches:
    """The model's own cache, one per prompt length: correct for hybrids, and slower."""

    group = _Group

    def __init__(self, slots: int, longest: int, max_new_tokens: int, *, reused: bool) -> None:
        self.places: list[tuple[_Group, int]] = []
        """each row's group, and its index there"""

    def admit(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """See `Store`."""
        device = next(model.parameters()).device
        logits: dict[int, Tensor] = {}
        places: dict[int, tuple[_Group, int]] = {}
        for length in sorted(set(map(len, prompts))):
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            group = self.group(torch.tensor([list(prompts[row]) for row in rows], device=device))
            logits |= dict(zip(rows, group.read(model, group.ids), strict=True))
            places |= {row: (group, number) for number, row in enumerate(rows)}
        self.places += [places[row] for row in range(len(prompts))]
        return torch.stack([logits[row] for row in range(len(prompts))])

    def step(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """See `Store`."""
        logits: dict[int, Tensor] = {}
        for group, rows in self._members():
            new = tokens[rows][:, None]
            group.ids = torch.cat([group.ids, new], dim=1)
            logits |= dict(zip(rows, group.read(model, new), strict=True))
        return torch.stack([logits[row] for row in range(len(tokens))])

    def release(self, done: Sequence[int]) -> list[int]:
        """See `Store`."""
        kept = [row for row in range(len(self.places)) if row not in set(done)]
        before = self.places
        self.places = [before[row] for row in kept]
        for group, rows in self._members():
            numbers = [self.places[row][1] for row in rows]
            if len(numbers) < len(group.ids):
                group.keep(torch.tensor(numbers, device=group.ids.device))
                for number, row in enumerate(rows):
                    self.places[row] = (group, number)
        return kept

    def _members(self) -> list[tuple[_Group, list[int]]]:
        """Every group with its rows, in the order of their indices there."""
        rows: dict[int, list[int]] = {}
        groups = {id(group): group for group, _ in self.places}
        for row, (group, _) in enumerate(self.places):
            rows.setdefault(id(group), []).append(row)
        return [(groups[key], sorted(own, key=lambda row: self.places[row][1])) for key, own in rows.items()]


class _UncachedGroup(_Group):
    """Rows of one length, read from the beginning for every token: correct for every model, and slowest."""

    def read(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Logits after all tokens so far, shape (rows, vocabulary)."""
        logits: Tensor = model(input_ids=self.ids, use_cache=False, **_fewest_outputs(model)).logits
        return logits[:, -1]


class _NoCaches(_OwnCaches):
    """For a model that returns no cache, or one that cannot be continued."""

    group = _UncachedGroup


STORES: tuple[type[Store], ...] = (_Window, _OwnCaches, _NoCaches)
"""fastest first"""
CACHES = ("past_key_values", "cache_params", "state")
"""names under which models return their caches"""
FOUND_STORE = "_tiebreak_store"
"""attribute of a tested model"""


def find_store(model: nn.Module, pad_id: int) -> type[Store]:
    """The fastest store whose logits equal those of the model's forward of whole rows; tested once."""
    whole = whole_model(model)
    found: type[Store] | None = whole.__dict__.get(FOUND_STORE)
    if found is None:
        _report_unused_settings(whole)
        chunked = getattr(
            whole.config.get_text_config(), "attention_chunk_size", None
        )  # of slots, which a window moves
        tried = STORES[1:-1] if chunked else STORES[:-1]
        found = next((store for store in tried if _is_right(model, store, pad_id)), STORES[-1])
        whole.__dict__[FOUND_STORE] = found
        if found is not STORES[0]:
            kind = "its own cache" if found is _OwnCaches else "no cache"
            say(f"{type(whole).__name__} has more state than keys and values: sampling uses {kind}, and is slower")
    return found


UNUSED_SETTINGS = {
    **dict.fromkeys(
        ("repetition_penalty", "encoder_repetition_penalty", "typical_p", "guidance_scale", "num_beams"), 1
    ),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "top_h", "penalty_alpha"), 0),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "stop_strings")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
    "watermarking_config": None,
}
"""settings of a generation_config.json that no key of `sampling` has, with the value that does nothing"""


def _report_unused_settings(whole: nn.Module) -> None:
    """Name what a model's own generation would do and sampling does not."""
    own = getattr(whole, "generation_config", None)
    asked = {name: getattr(own, name, None) for name in UNUSED_SETTINGS}
    unused = [f"{name}: {asked[name]}" for name, idle in UNUSED_SETTINGS.items() if asked[name] not in (None, idle)]
    if unused:
        say(
            f"generation_config.json: sampling does not apply {', '.join(unused)}; it draws by the keys of sampling alone"
        )


@torch.no_grad()
def _is_right(model: nn.Module, store: type[Store], pad_id: int) -> bool:
    """Whether a few generated tokens have the same logits as whole rows, read one by one."""
    text = whole_model(model).config.get_text_config()
    window_size = getattr(text, "sliding_window", None) or 0
    length = max(TRIED_TOKENS, window_size + 2 if window_size <= MOST_TRIED_TOKENS else 0)
    ids = [(7 * number + 5) % text.vocab_size for number in range(length + 5)]
    rows = [ids[:length], ids[3:length], ids[3:length]]
    written = [[ids[-1], ids[-2], ids[-3]], [ids[-2], ids[-4], ids[-1]]]
    window = store(len(rows), length, len(written) + 1, reused=False)
    try:
        logits = window.admit(model, rows, pad_id)
        right = _same(logits, _whole_rows(model, rows))
        for number, tokens in enumerate(written):
            kept = window.release([0] if number else [])
            rows = [[*rows[row], tokens[row]] for row in kept]
            logits = window.step(model, torch.tensor([row[-1] for row in rows], device=logits.device))
            right = right and _same(logits, _whole_rows(model, rows))
    except FAILURES:
        return False
    return right


def _whole_rows(model: nn.Module, rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits after each row, read alone from its beginning; shape (rows, vocabulary)."""
    device = next(model.parameters()).device
    return torch.cat(
        [
            model(input_ids=torch.tensor([row], device=device), use_cache=False, **_fewest_outputs(model)).logits[:, -1]
            for row in rows
        ]
    )


def _same(ours: Tensor, own: Tensor) -> bool:
    allowed = 1e-3 if own.dtype in (torch.float32, torch.float64) else 0.1
    return bool((ours.float() - own.float()).abs().max() <= allowed * own.float().abs().max())


def _fewest_outputs(model: nn.Module) -> dict[str, Any]:
    """The forward options that request only the last token's logits, as far as the model has them."""
    whole = whole_model(model)
    options: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(type(whole).forward).parameters:
        options["logits_to_keep"] = 1
    if hasattr(whole.config.get_text_config(), "output_router_logits"):
        options["output_router_logits"] = False  # its auxiliary loss needs a mask of the tokens read
    return options


# --- reading prompts


@dataclass(frozen=True)
class Read:
    """A model's output for prompts, aligned at their ends."""

    logits: Tensor
    """of the token after each, shape (prompts, vocabulary)"""
    layers: list[list[Tensor]]
    """keys and values of each layer, shape (prompts, heads, longest, head size); undefined before a prompt's start"""


@torch.no_grad()
def read_prompts(model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> Read:
    """Read prompts, without padding and their common beginning once, if the model supports it."""
    whole = whole_model(model)
    if not packs(whole):
        return _read_padded(model, prompts, pad_id)
    fuse_layers(model)
    device = next(model.parameters()).device
    packing = pack_sequences(prompts, None, TOKENS_PER_PASS, device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    steps = torch.arange(-int(lengths.max()), 0, device=device) + lengths[:, None]
    numbers = torch.arange(len(prompts), device=device)
    places = packing.place(numbers[:, None].expand_as(steps), steps.clamp(min=0))
    order: list[Tensor] = []
    last: list[Tensor] = []
    made: list[list[list[Tensor]]] = []  # row, layer, keys and values
    for at, row in enumerate(packing.rows):
        own = numbers[packing.row == at]
        cache = DynamicCache()
        last.append(hidden_states(whole, row, cache)[places[own, -1]])
        order.append(own)
        made.append([[kept[0][:, places[own]].transpose(0, 1) for kept in _kept(layer)] for layer in cache.layers])
    back = torch.cat(order).argsort()
    logits = head_of(whole).logits(torch.cat(last))[back]
    layers = [[torch.cat(parts)[back] for parts in zip(*rows, strict=True)] for rows in zip(*made, strict=True)]
    return Read(logits, layers)


def _read_padded(model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> Read:
    width = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    cache = DynamicCache()
    logits = _last_logits(model, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
    return Read(logits, [_kept(layer) for layer in cache.layers])


def _kept(layer: Any) -> list[Tensor]:
    """A cache layer's keys and values; none if it shares another's."""
    return [kept for kept in (layer.keys, layer.values) if kept is not None]


def _last_logits(model: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **_fewest_outputs(model),
    ).logits
    return logits[:, -1]


def draw(logits: Tensor, uniform: Tensor, sampling: SamplingConfig) -> Tensor:
    """Sampled token ids, shape (rows,): each row's inverse distribution function at its uniform number.

    Args:
        logits: shape (rows, vocabulary).
        uniform: shape (rows,), in [0, 1).

    Raises:
        HandoffError: the model gives no numbers.
    """
    if sampling.temperature == 0.0:
        picked = logits.argmax(-1)
        _require_numbers(logits.gather(-1, picked[:, None]))
        return picked
    logits = logits.float() / sampling.temperature
    if sampling.top_k or sampling.top_p < 1.0:
        kept = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
        logits, tokens = logits.topk(kept, dim=-1)  # descending
        probabilities = logits.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
        return tokens.gather(-1, _invert(probabilities, uniform)[:, None]).squeeze(-1)
    return _invert(logits.softmax(-1), uniform)


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds `uniform`, in float64. Searched in blocks, then within one:
    summing the whole vocabulary for every row took as long as three layers of a small model."""
    rows, size = probabilities.shape
    block = max(1, int(size**0.5))
    blocks = nn.functional.pad(probabilities, (0, -size % block)).view(rows, -1, block)
    sums = blocks.sum(-1, dtype=torch.float64)
    cumulative = sums.cumsum(-1)
    _require_numbers(cumulative[:, -1])
    target = uniform.double() * cumulative[:, -1]
    at = _first_above(cumulative, target, sums)
    within = blocks[torch.arange(rows, device=at.device), at].double()
    before = cumulative.gather(-1, at[:, None]).squeeze(-1) - sums.gather(-1, at[:, None]).squeeze(-1)
    return at * block + _first_above(within.cumsum(-1), target - before, within)


def _require_numbers(values: Tensor) -> None:
    """One logit that is not a number makes every probability of its row none, and the largest logit."""
    if not bool(values.isfinite().all()):
        raise NotFiniteError(
            "the model gives probabilities that are not finite numbers: its weights are broken, or its precision is too "
            "coarse (training.precision)"
        )


def _first_above(cumulative: Tensor, target: Tensor, parts: Tensor) -> Tensor:
    """Index of the first cumulative sum above the target; rounding must not select beyond the last non-zero part."""
    picked = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1)
    last = parts.shape[-1] - 1 - (parts > 0).flip(-1).byte().argmax(-1)
    return torch.minimum(picked, last)
