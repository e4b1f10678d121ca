"""Every training stage on one GPU, within ten minutes: speed, memory, and agreement with float32 on the CPU.

    python benchmarks/gpu.py                                   # writes benchmarks/gpu.json
    python benchmarks/gpu.py --only card train --models 135m
    python benchmarks/gpu.py --small                           # every part on two-layer models, on a CPU if need be

Never run on a GPU so far; the tests run `--small`. Models: the bundled one, and a Llama of 1.24 billion random weights
(configs/shapes/llama-3.2-1b.json). All is bfloat16 with LoRA of rank 16 unless named otherwise. Parts:

    card        the card's own rates: a large bfloat16 torch.mm, a copy
    agreement   losses of SFT, reward and DPO, and log-probabilities of drawn tokens, against float32 on the CPU
    train       SFT, reward, DPO: ours, and TRL's fastest settings (see training.py; padding-free SFT with flash attention
                where it is installed; TRL's own fused head is on by default)
    rollouts    PPO, and RLOO beside TRL's
    passes      DPO at several training.tokens_per_pass
    attention   the packed forward with SDPA and with FlexAttention, and the plain padded one
    sampling    tokens a second of our sampler and of transformers' generate; vLLM's, where it is installed

Each part of a model is a process of its own, so a fault of the GPU ends one part. The most useful ones come first: when
--minutes are over, what is left is listed in the file and not measured. Memory is the peak of what torch allocated on the
card in that measurement.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ppo
import rloo
import torch
import training
from measuring import Measurement, now, peak_mib, product_rate
from rollouts import Job

from tiebreak.config import SamplingConfig, TrainingConfig

RESULTS = Path(__file__).with_name("gpu.json")
ONE_BILLION = Path(__file__).resolve().parents[1] / "configs" / "shapes" / "llama-3.2-1b.json"
MODELS = ("135m", "1b")
STAGES = ("sft", "reward", "dpo")
CLOSE = {"losses": 0.05, "logps": 0.05}
"""how far bfloat16 may be from float32: losses of the first steps, and nats a token on average"""
PART_AT_LEAST = 20.0
"""seconds: with fewer left, no part is begun"""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rows: int = 32
    """of a training step; pairs in DPO and reward"""
    steps: int = 6
    """the first is not timed"""
    agreeing_rows: int = 2
    agreeing_steps: int = 3
    episodes: int = 64
    """of a rollout"""
    rollouts: int = 3
    response_tokens: int = 64
    passes: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    packed_pairs: int = 32
    drawn_rows: int = 64
    drawn_tokens: int = 128
    mm: int = 8192
    repeats: int = 10


SMALL = Sizes(2, 2, 2, 2, 8, 2, 4, (128, 256), 3, 4, 4, 256, 2)


@dataclass(frozen=True)
class Work:
    """What a part gets."""

    model: str
    sizes: Sizes
    precision: training.Precision = "bfloat16"
    drawn: Path | None = None
    """the answer of `agreement`, whose tokens `reference` scores"""


Figures = dict[str, Any]
NamedFigures = tuple[str, Callable[[], Figures]]


# --- the parts: each lists its measurements by name


def card(work: Work) -> list[NamedFigures]:
    """The machine, and its rates."""
    return [("card", partial(_card, work.sizes))]


def _card(sizes: Sizes) -> Figures:
    size, repeats = sizes.mm, sizes.repeats
    on_gpu = torch.cuda.is_available()
    block = torch.empty(size * size, dtype=torch.float32, device="cuda" if on_gpu else "cpu")
    seconds = _best(lambda: block.clone(), repeats)
    packages = ("torch", "transformers", "trl", "peft", "flash_attn", "liger_kernel", "vllm")
    return {
        "name": torch.cuda.get_device_name() if on_gpu else f"CPU: {platform.processor() or platform.machine()}",
        "gpu": on_gpu,
        "mm_operations_a_second": product_rate(size, repeats),
        "copy_bytes_a_second": 2 * block.numel() * 4 / seconds,
        "versions": {name: _version(name) for name in packages if importlib.util.find_spec(name)},
    }


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def _best(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one that is not timed."""
    call()
    times = []
    for _ in range(repeats):
        started = now()
        call()
        times.append(now() - started)
    return min(times)


def agreement(work: Work) -> list[NamedFigures]:
    """Our stages' first losses, and the log-probabilities of tokens that we draw."""
    losses: list[NamedFigures] = [(stage, partial(_first_losses, work, stage)) for stage in STAGES]
    return [*losses, ("logps", partial(_drawn, work))]


def reference(work: Work) -> list[NamedFigures]:
    """The same in float32 on the CPU: the losses by the same stages, the log-probabilities by transformers alone."""
    plain = replace(work, precision="float32")
    losses: list[NamedFigures] = [(stage, partial(_first_losses, plain, stage)) for stage in STAGES]
    return [*losses, ("logps", partial(_scored_plainly, plain))]


def _first_losses(work: Work, stage: str) -> Figures:
    sizes = work.sizes
    made = training.measure(
        _case(stage), "ours", sizes.agreeing_rows, sizes.agreeing_steps, work.model, work.precision
    )  # fmt: skip
    return {"losses": made.losses}


def _drawn(work: Work) -> Figures:
    prompts = _prompts(work, 4)
    model, pad = _base(work)
    drawn = _draw(model, prompts, min(32, work.sizes.drawn_tokens), pad)
    return {
        "prompts": prompts,
        "completions": [one.ids for one in drawn],
        "logps": [value for one in drawn for value in one.logps],
    }


def _scored_plainly(work: Work) -> Figures:
    from transformers import AutoModelForCausalLM

    from tiebreak.models.find import find_model

    if work.drawn is None:
        raise ValueError("nothing was drawn")
    drawn = json.loads(work.drawn.read_text())["logps"]
    model = AutoModelForCausalLM.from_pretrained(find_model(work.model).base_path, dtype=torch.float32)
    logps: list[float] = []
    for prompt, completion in zip(drawn["prompts"], drawn["completions"], strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        logps += logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()
    return {"logps": logps}


def train(work: Work) -> list[NamedFigures]:
    """Ours and TRL's fastest settings."""
    return [
        (f"{stage}, {name}", partial(_trained, work, stage, name)) for stage in STAGES for name in ("ours", "trl fast")
    ]


def _trained(work: Work, stage: str, contestant: str) -> Figures:
    made = training.measure(_case(stage), contestant, work.sizes.rows, work.sizes.steps, work.model, work.precision)
    return _figures(made)


def rollouts(work: Work) -> list[NamedFigures]:
    """PPO, and RLOO on both sides."""
    return [
        ("ppo, ours", partial(_ppo, work)),
        ("rloo, ours", partial(_rloo, work, rloo.ours)),
        ("rloo, trl", partial(_rloo, work, rloo.theirs)),
    ]


def _ppo(work: Work) -> Figures:
    sizes = work.sizes
    with tempfile.TemporaryDirectory() as scratch:
        asked = {
            "model": work.model,
            "prompts": _prompts(work, sizes.episodes),
            "episodes_a_step": sizes.episodes // ppo.MINIBATCHES,
            "rollouts": sizes.rollouts,
            "response_tokens": sizes.response_tokens,
            "precision": work.precision,
        }
        job = ppo.prepare(asked, Path(scratch), for_trl=False)
        _clear()
        return _figures(ppo.ours(job, Path(scratch)))


def _rloo(work: Work, side: Callable[[Job, Path], Measurement]) -> Figures:
    sizes = work.sizes
    distinct = _prompts(work, sizes.episodes // rloo.GROUP)
    job = Job(
        model=work.model,
        base="",
        tokenizer="",
        reward_adapter="",
        reward_whole="",
        prompts=[ids for ids in distinct for _ in range(rloo.GROUP)],
        scored=[],
        episodes_a_step=sizes.episodes // ppo.MINIBATCHES,
        rollouts=sizes.rollouts,
        ppo_epochs=1,
        response_tokens=sizes.response_tokens,
        precision=work.precision,
    )
    with tempfile.TemporaryDirectory() as scratch:
        return _figures(side(job, Path(scratch)))


def passes(work: Work) -> list[NamedFigures]:
    """DPO at several sizes of a pass."""
    return [(str(tokens), partial(_pass, work, tokens)) for tokens in work.sizes.passes]


def _pass(work: Work, tokens: int) -> Figures:
    sizes = work.sizes
    rows, steps = 2 * sizes.rows, max(2, sizes.steps // 2)
    return _figures(
        training.measure(_case("dpo"), "ours", rows, steps, work.model, work.precision, tokens_per_pass=tokens)
    )


def attention(work: Work) -> list[NamedFigures]:
    """Layers alone, forward and backward, on the same pairs."""
    return [(name, partial(_layers, work, name)) for name in ("plain", "sdpa", "flex")]


def _layers(work: Work, way: str) -> Figures:
    """Of the last layer's output at both sides' last tokens; the plain rows are each of their own, padded."""
    import flex

    from tiebreak.packed.forward import hidden_states, packs
    from tiebreak.packed.packing import pack_sequences
    from tiebreak.packed.parts import layers_of

    model, pad = _base(work)
    device = model.device
    pairs = training.build_pairs("multi-turn", work.sizes.packed_pairs, _tokenizer(work))
    sequences = [pair.prompt + side for pair in pairs for side in (pair.chosen, pair.rejected)]
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    numbers = torch.arange(len(sequences), device=device)
    gradients = device.type == "cuda" or way != "flex"  # FlexAttention has none on a CPU
    packing = pack_sequences(sequences, [[n, n + 1] for n in range(0, len(sequences), 2)], device=device)
    (row,) = packing.rows
    longest = int(lengths.max())
    padded = torch.tensor([[*sequence, *[pad] * (longest - len(sequence))] for sequence in sequences], device=device)
    mask = torch.arange(longest, device=device) < lengths[:, None]
    if way != "plain" and not packs(model):
        raise ValueError("this model's rows cannot be packed")
    if way == "flex":
        model.set_attn_implementation(flex.TREES_IN_FLEX)
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(gradients)

    def last_states() -> torch.Tensor:
        if way == "plain":
            hidden = layers_of(model)(input_ids=padded, attention_mask=mask.long(), use_cache=False)[0]
            states: torch.Tensor = hidden[numbers, lengths - 1]
            return states
        return hidden_states(model, row)[packing.place(numbers, lengths - 1)]

    def step() -> torch.Tensor:
        states = last_states()
        if gradients:
            model.get_input_embeddings().weight.grad = None
            states.float().square().sum().backward()
        return states

    seconds = _best(step, max(2, work.sizes.repeats // 3))
    peak = peak_mib()
    states = step().detach().float().cpu()
    computed = padded.numel() if way == "plain" else row.input_ids.shape[1]
    return {
        "seconds": seconds,
        "with_backward": gradients,
        "tokens_computed": computed,
        "tokens_a_second": int(lengths.sum()) / seconds,
        "peak_mib": peak,
        "states": states[:, :64].tolist(),
    }


def sampling(work: Work) -> list[NamedFigures]:
    """Tokens a second."""
    ways: list[NamedFigures] = [("ours", partial(_sampled, work)), ("transformers", partial(_generated, work))]
    return [*ways, *([("vllm", partial(_by_vllm, work))] if importlib.util.find_spec("vllm") else [])]


def _sampled(work: Work) -> Figures:
    model, pad = _base(work)
    prompts, tokens = _prompts(work, work.sizes.drawn_rows), work.sizes.drawn_tokens
    return _drawing(lambda: _draw(model, prompts, tokens, pad), len(prompts) * tokens)


def _generated(work: Work) -> Figures:
    model, pad = _base(work)
    prompts, tokens = _prompts(work, work.sizes.drawn_rows), work.sizes.drawn_tokens
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "use_cache": True, "pad_token_id": pad}
    exactly = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    return _drawing(
        lambda: model.generate(input_ids=ids, attention_mask=mask, **options, **exactly), len(prompts) * tokens
    )


def _by_vllm(work: Work) -> Figures:
    from vllm import LLM, SamplingParams

    from tiebreak.models.find import find_model

    prompts, tokens = _prompts(work, work.sizes.drawn_rows), work.sizes.drawn_tokens
    llm = LLM(model=str(find_model(work.model).base_path), dtype=work.precision, gpu_memory_utilization=0.6)
    wanted = SamplingParams(temperature=1.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
    asked = [{"prompt_token_ids": ids} for ids in prompts]
    return _drawing(lambda: llm.generate(asked, wanted, use_tqdm=False), len(prompts) * tokens)


def _drawing(call: Callable[[], object], tokens: int) -> Figures:
    return {"tokens_a_second": tokens / _best(call, 2), "peak_mib": peak_mib()}


def _draw(model: Any, prompts: list[list[int]], tokens: int, pad: int) -> Any:
    from tiebreak.packed.generation import row_seed, sample_completions

    seeds = [row_seed("benchmark", n) for n in range(len(prompts))]
    asked = SamplingConfig(temperature=1.0, max_new_tokens=tokens)
    return sample_completions(model, prompts, seeds, asked, stop_ids=(), pad_id=pad, batch_size=len(prompts))


# --- what the parts share


def _case(stage: str) -> training.Case:
    return next(case for case in training.CASES if case.name == f"{stage}, multi-turn")


def _tokenizer(work: Work) -> Any:
    from tiebreak.models.find import find_model
    from tiebreak.models.tokenizers import load_tokenizer

    return load_tokenizer(find_model(work.model))


def _prompts(work: Work, count: int) -> list[list[int]]:
    return [pair.prompt for pair in training.build_pairs("multi-turn", count, _tokenizer(work))]


def _base(work: Work) -> tuple[Any, int]:
    """(the base model on the device, its padding token)."""
    from tiebreak.models.find import find_model
    from tiebreak.models.load import load_base

    model = load_base(find_model(work.model), TrainingConfig(precision=work.precision))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), int(_tokenizer(work).pad_token_id)


def _figures(made: Measurement) -> Figures:
    """What the file keeps of a training's figures."""
    kept = ("losses", "tokens_per_second", "peak_mib", "matrix_product_share", "phases", "first_rollout")
    seconds = {"step_seconds": made.step_seconds + made.setup_seconds}
    return seconds | {name: value for name, value in asdict(made).items() if name in kept and value not in ({}, None)}


def _clear() -> None:
    """Before a measurement: nothing of the one before it is on the card."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


PARTS: dict[str, Callable[[Work], list[NamedFigures]]] = {
    "card": card,
    "agreement": agreement,
    "train": train,
    "rollouts": rollouts,
    "passes": passes,
    "attention": attention,
    "sampling": sampling,
    "reference": reference,
}
OF_EACH_MODEL = ("agreement", "train", "rollouts", "passes", "attention", "sampling")


def measure_part(part: str, work: Work, answer: Path) -> Figures:
    """All measurements of a part in this process; the file has each as soon as it is made. A failed one says why."""
    warnings.filterwarnings("ignore")
    done: Figures = {}
    for name, call in PARTS[part](work):
        _clear()
        held = torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
        try:
            done[name] = call() | ({"held_before_mib": held} if held > 1 else {})
        except (Exception, SystemExit) as error:  # noqa: BLE001 - one failed measurement costs no other
            done[name] = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
        answer.write_text(json.dumps(done))
    return done


# --- models


def write_model(folder: Path, *, small: bool, layers: int = 2) -> Path:
    """A Llama of random weights with the bundled model's tokenizer: a public 1B shape, or a very small one."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tiebreak.models.bundled import SMOLLM2, load_bundled

    tokenizer = AutoTokenizer.from_pretrained(load_bundled(SMOLLM2))
    shape: Figures = json.loads(ONE_BILLION.read_text())
    if small:
        shape |= {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
        shape |= {"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**{**shape, **ends}))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- the run


def run(options: argparse.Namespace) -> Figures:
    """Part after part, until the time is over."""
    ends = time.monotonic() + 60 * options.minutes
    results: Figures = {"small": options.small, "minutes": options.minutes, "models": {}, "left_out": []}
    with tempfile.TemporaryDirectory() as scratch:
        models = dict.fromkeys(options.models, training.MODEL)
        if "1b" in models or options.small:
            folder = Path(scratch) / "model"
            _in_process("model", "", options, folder, ends)
            models |= dict.fromkeys(models if options.small else ["1b"], str(folder))
        for name, part in planned(options):
            answer = Path(scratch) / f"{name}-{part}.json"
            if ends - time.monotonic() < PART_AT_LEAST:
                results["left_out"].append(f"{name}: {part}" if name else part)
                write(results, options.results)
                continue
            print(f"{name} {part}".strip(), file=sys.stderr, flush=True)
            found = _in_process(part, models.get(name, ""), options, answer, ends)
            if part == "agreement":
                checked = Path(scratch) / f"{name}-reference.json"
                found = compared(found, _in_process("reference", models[name], options, checked, ends, drawn=answer))
            keep(results, name, part, found)
            write(results, options.results)
    return results


def write(results: Figures, file: Path) -> None:
    """To JSON, after each part."""
    file.write_text(json.dumps(results, indent=1) + "\n")


def planned(options: argparse.Namespace) -> list[tuple[str, str]]:
    """(model, part) in order: the card, then the small model's parts up to training, then the others'."""
    chosen = [part for part in OF_EACH_MODEL if part in options.only]
    first = [part for part in chosen if part in ("agreement", "train", "rollouts")]
    rest = [part for part in chosen if part not in first]
    pairs = [(name, part) for parts in (first, rest) for name in options.models for part in parts]
    return [*([("", "card")] if "card" in options.only else []), *pairs]


def _in_process(
    part: str, model: str, options: argparse.Namespace, answer: Path, ends: float, drawn: Path | None = None
) -> Figures:
    """A part in a process of its own, ended when the time is over; what it had measured by then."""
    words = [sys.executable, __file__, "--part", part, "--model", model, "--answer", str(answer)]
    words += ["--small"] if options.small else []
    words += ["--drawn", str(drawn)] if drawn else []
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if part == "reference" else {}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **hidden}
    left = max(ends - time.monotonic(), 1.0)
    failed = ""
    try:
        done = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False, timeout=left)
        failed = f"ended with status {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        failed = "the time was over"
    found: Figures = json.loads(answer.read_text()) if answer.is_file() else {}
    return found | ({"failed": failed} if failed else {})


def compared(ours: Figures, plain: Figures) -> Figures:
    """Losses and log-probabilities beside those of float32, and whether they are as near as they must be."""
    result: Figures = {name: one for name, one in ours.items() if name == "failed"}
    for name in (*STAGES, "logps"):
        mine, theirs = ours.get(name, {}), plain.get(name, {})
        kind = "logps" if name == "logps" else "losses"
        if kind not in mine or kind not in theirs:
            result[name] = {"failed": mine.get("failed") or theirs.get("failed") or "not measured"}
            continue
        apart = [abs(a - b) for a, b in zip(mine[kind], theirs[kind], strict=True)]
        difference = sum(apart) / len(apart) if kind == "logps" else max(apart)
        result[name] = {"difference": difference, "agrees": difference <= CLOSE[kind]}
        if kind == "losses":
            result[name] |= {"losses": mine[kind], "float32": theirs[kind]}
    return result


def keep(results: Figures, name: str, part: str, found: Figures) -> None:
    """Put a part's figures into the results; hidden states are compared, and not kept."""
    if part == "attention":
        plain = found.get("plain", {}).get("states")
        for way, figures in found.items():
            states = figures.pop("states", None) if isinstance(figures, dict) else None
            if states and plain and way != "plain":
                figures["largest_difference"] = _largest(states, plain)
    if part == "card":
        results["card"] = found.get("card", found)
    else:
        results["models"].setdefault(name, {})[part] = found


def _largest(states: list[list[float]], plain: list[list[float]]) -> float:
    """As a share of the largest of the plain ones."""
    ours, own = torch.tensor(states), torch.tensor(plain)
    return float((ours - own).abs().max() / own.abs().max())


# --- the table


def table(results: Figures) -> str:
    """The results as Markdown."""
    lines = [
        results.get("card", {}).get("name", "no card was measured"),
        "",
        "| model | stage | tokens/s | peak MiB | of the card's rate | ours ÷ TRL: speed | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, parts in results["models"].items():
        trained = {**parts.get("train", {}), **parts.get("rollouts", {})}
        for stage, theirs in (*((stage, "trl fast") for stage in STAGES), ("ppo", ""), ("rloo", "trl")):
            if one := trained.get(f"{stage}, ours"):
                lines.append(f"| {model} | {stage} | {_row(one, trained.get(f'{stage}, {theirs}', {}))} |")
    lines += ["", *remarks(results)]
    return "\n".join(lines)


def _row(ours: Figures, theirs: Figures) -> str:
    if "failed" in ours:
        return f"failed: {ours['failed']} | | | |"
    share = ours.get("matrix_product_share")
    cells = [f"{ours['tokens_per_second']:,.0f}", f"{ours['peak_mib']:,.0f}", "" if share is None else f"{share:.0%}"]
    if "tokens_per_second" in theirs:
        cells += [f"{ours['tokens_per_second'] / theirs['tokens_per_second']:.2f}"]
        cells += [f"{ours['peak_mib'] / theirs['peak_mib']:.2f}"]
    else:
        cells += ["", ""] if not theirs else [f"failed: {theirs['failed']}", ""]
    return " | ".join(cells)


def remarks(results: Figures) -> list[str]:
    """Agreement, the best pass, attention, sampling, and what was left out."""
    lines = []
    for model, parts in results["models"].items():
        for name, one in parts.get("agreement", {}).items():
            if isinstance(one, dict):
                apart = f"failed: {one['failed']}" if "failed" in one else f"{one['difference']:.1e} from float32"
                lines.append(f"{model}, {name}: {apart}{'' if one.get('agrees', True) else ', TOO FAR'}")
        rates = {name: one.get("tokens_per_second", 0.0) for name, one in _measured(parts, "passes")}
        if rates:
            best = max(rates, key=lambda name: rates[name])
            lines.append(f"{model}: best training.tokens_per_pass for DPO {best}, {rates[best]:,.0f} tokens/s")
        for part in ("attention", "sampling"):
            lines += [f"{model}, {part}, {name}: {_speed(one)}" for name, one in _measured(parts, part)]
    return lines + [f"left out, as the time was over: {one}" for one in results["left_out"]]


def _measured(parts: Figures, part: str) -> list[tuple[str, Figures]]:
    return [(name, one) for name, one in parts.get(part, {}).items() if isinstance(one, dict)]


def _speed(one: Figures) -> str:
    if "failed" in one:
        return f"failed: {one['failed']}"
    apart = f", {one['largest_difference']:.1e} from plain" if "largest_difference" in one else ""
    forward = "" if one.get("with_backward", True) else ", forward only"
    return f"{one['tokens_a_second']:,.0f} tokens/s{forward}, {one['peak_mib']:,.0f} MiB{apart}"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = ["card", *OF_EACH_MODEL]
    parser.add_argument("--only", nargs="+", default=choices, choices=choices, metavar="PART", help=", ".join(choices))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--small", action="store_true", help="two-layer models and few rows, to try every part")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--part", choices=[*PARTS, "model"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--drawn", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main() -> None:
    """The run, or one part of it."""
    options = parse()
    if options.part == "model":
        write_model(options.answer, small=options.small)
        return
    if options.part:
        sizes = SMALL if options.small else Sizes()
        measure_part(options.part, Work(options.model, sizes, drawn=options.drawn), options.answer)
        return
    if not torch.cuda.is_available() and not options.small:
        sys.exit("no GPU: torch sees none here. --small tries every part on the CPU; training.py measures CPUs")
    print(table(run(options)))


if __name__ == "__main__":
    main()
