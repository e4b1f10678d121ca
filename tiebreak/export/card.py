"""The model card: how the model was made, from its manifests. It says nothing that they do not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tiebreak import __version__
from tiebreak.card.forms import NAMES
from tiebreak.export.answers import Comparison
from tiebreak.export.configuration import ExportArguments
from tiebreak.export.model_to_export import ModelToExport, base_for_others
from tiebreak.models.scores import read_score_scale
from tiebreak.runs.chain import manifest_chain
from tiebreak.stages import STAGES
from tiebreak.terminal.bars import duration

CARD = "README.md"
_KINDS = {
    "human": "by people",
    "simulated": "by simulated raters: a program, not people",
    "model": "by a language model, not people",
}
_SPLITS = ("train", "validation", "test")
_SETTINGS = ("learning_rate", "epochs", "max_steps", "per_device_batch_size", "gradient_accumulation_steps", "seed")
_KEYS = ("algorithm", "loss_type", "beta", "kl_coef", "rollouts", "episodes_per_rollout")
_POLICY_CODE = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
messages = [{{"role": "user", "content": "…"}}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
written = model.generate(**ids, max_new_tokens=256)[0, ids["input_ids"].shape[1]:]
print(tokenizer.decode(written, skip_special_tokens=True))"""
_SCORE_CODE = """from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}")
messages = [{{"role": "user", "content": "…"}}, {{"role": "assistant", "content": "…"}}]
text = tokenizer.apply_chat_template(messages, tokenize=False){cut}
print(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits)"""


def write_card(
    folder: Path,
    origin: ModelToExport,
    arguments: ExportArguments,
    dtype: str,
    comparison: Comparison,
    how_to: str = "",
) -> None:
    """Write the card of an export.

    Args:
        how_to: how the format is used, instead of Python.
    """
    chain = manifest_chain(origin.source.name, as_far_as_known=True) if origin.source.stage else []
    manifests = [manifest for _, manifest in chain]
    name = arguments.repo or folder_title(origin)
    lines = [
        "---",
        yaml.safe_dump(_front_matter(origin, arguments, manifests), sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {name.rpartition('/')[2]}",
        "",
        _first_sentence(origin, manifests),
        "",
        *_making(manifests),
        *_scale(origin),
        "## Use",
        "",
        *(how_to.splitlines() if how_to else _code(origin, arguments, name)),
        "",
        *_stops(origin),
        "## Check",
        "",
        f"Written as {dtype} by Tiebreak {__version__}, loaded again without it, and compared: {comparison}.",
        *_copied_cards(folder, origin),
    ]
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _copied_cards(folder: Path, origin: ModelToExport) -> Iterator[str]:
    """Copy the cards that `tiebreak card` wrote into the run folder, and link them."""
    run = Path(origin.source.name)
    found = (
        [run / f"{name}.{ending}" for name in NAMES.values() for ending in ("md", "html", "pdf")]
        if origin.source.stage
        else []
    )
    names = [path.name for path in found if path.is_file()]
    for name in names:
        shutil.copyfile(run / name, folder / name)
    if names:
        yield from ["", "## Documents", "", *(f"- [{name}]({name})" for name in names)]


def folder_title(origin: ModelToExport) -> str:
    """A name for the model: its run folder's, or the base's."""
    return Path(origin.source.name).name if origin.source.stage else origin.source.base.rpartition("/")[2]


def _front_matter(
    origin: ModelToExport, arguments: ExportArguments, manifests: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    base = base_for_others(origin.source)
    on_hub = not Path(base).is_absolute()
    relation = "adapter" if arguments.writes_adapter else "finetune"
    return {
        **({"base_model": base, "base_model_relation": relation} if on_hub and manifests else {}),
        "library_name": "peft" if arguments.writes_adapter else "transformers",
        "pipeline_tag": "text-classification" if origin.kind == "reward" else "text-generation",
        "tags": ["tiebreak", *(str(one["stage"]) for one in manifests if STAGES[str(one["stage"])].trains)],
    }


def _first_sentence(origin: ModelToExport, manifests: Sequence[Mapping[str, Any]]) -> str:
    what = "A reward model" if origin.kind == "reward" else "A policy"
    base = base_for_others(origin.source)
    if not manifests:
        return f"The model `{base}`, as it is."
    trained = [STAGES[str(one["stage"])] for one in manifests if _trains(one)]
    by = ", then ".join(
        "training on preferences" if one.makes == "reward" else one.title or one.name for one in trained
    )
    return f"{what}, trained from `{base}` by {by}."


def _trains(manifest: Mapping[str, Any]) -> bool:
    return STAGES[str(manifest["stage"])].trains


def _making(manifests: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not manifests:
        return
    yield from ["## How it was made", "", "| stage | run | rows | settings | result |", "|---|---|---|---|---|"]
    for one in manifests:
        counts = one.get("counts") or {}
        rows = ", ".join(f"{counts[split]:,} {split}" for split in _SPLITS if isinstance(counts.get(split), int))
        cells = [str(one["stage"]), f"`{one['id']}`", rows, _settings(one), _results(one)]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
    if kinds := sorted({str(kind) for one in manifests for kind in one.get("kinds") or ()}):
        yield from [f"Its preferences were judged {' and '.join(_KINDS.get(kind, kind) for kind in kinds)}.", ""]
    for one in manifests:
        if (made := one.get("synthetic")) and _trains(one):
            unseen = made["rows"] - made["reviewed"]
            seen = f"{unseen:,} of them reviewed by nobody" if unseen else "all of them reviewed"
            yield from [f"{made['rows']:,} of the {made['of']:,} rows of {one['stage']} are synthetic, {seen}.", ""]
    last = manifests[-1]
    took = sum(float(one.get("seconds") or 0.0) for one in manifests if _trains(one))
    packages = ", ".join(f"{name} {version}" for name, version in (last.get("packages") or {}).items())
    yield from [f"Training took {duration(took)} on {last.get('machine', 'an unnamed machine')} with {packages}.", ""]


def _settings(manifest: Mapping[str, Any]) -> str:
    if not _trains(manifest):
        return ""
    config = manifest["config"]
    adapter = (manifest.get("model") or {}).get("adapter") or {}
    pairs = [f"{key} {config[key]}" for key in _KEYS if config.get(key) is not None]
    pairs += [f"{key} {config['training'][key]}" for key in _SETTINGS if config["training"].get(key) is not None]
    pairs += [f"adapter {key} {value}" for key, value in adapter.items() if key in ("method", "quantize", "r", "alpha")]
    return ", ".join(pairs)


def _results(manifest: Mapping[str, Any]) -> str:
    titles, values = STAGES[str(manifest["stage"])].metrics, manifest.get("metrics") or {}
    return ", ".join(
        f"{title} {values[key]:.4g}" for key, title in titles.items() if isinstance(values.get(key), int | float)
    )


def _scale(origin: ModelToExport) -> Iterator[str]:
    if origin.kind != "reward" or origin.source.probed is None:
        return
    scale = read_score_scale(origin.source.probed)
    yield from ["## Scores", "", "Only differences between answers to one prompt mean anything.", ""]
    if len(scale.offsets) > 1:
        offsets = ", ".join(f"{one:.6g}" for one in scale.offsets)
        yield from [
            f"{len(scale.offsets)} members, one logit each. Subtract each one's offset ({offsets}), then average.",
            "",
        ]
    if scale.temperature is not None:
        yield from [
            f"The probability that answer A is better than B: σ((score A − score B) / {scale.temperature:.6g}), fitted on "
            "held-out preferences.",
            "",
        ]
    if scale.score_mean is not None and scale.score_std:
        yield from [
            f"Shift and scale: (score − {scale.score_mean:.6g}) / {scale.score_std:.6g}, from {scale.samples} completions "
            "of the initial policy.",
            "",
        ]


def _code(origin: ModelToExport, arguments: ExportArguments, name: str) -> list[str]:
    if arguments.writes_adapter:
        form = f"{origin.weights.name}{', double quantisation' * origin.weights.double}" if origin.weights else ""
        held = f" The base was held in {form} (bitsandbytes) in training: load it so." if form else ""
        return [f"A PEFT adapter on `{base_for_others(origin.source)}`; the tokenizer is in this folder.{held}"]
    code = _SCORE_CODE if origin.kind == "reward" else _POLICY_CODE
    place = name if arguments.repo else "."
    after = origin.chat.turn.tail.partition(origin.end_texts[0])[2]  # what the template writes after the end token
    cut = f".removesuffix({after!r})  # the score is read at the end token" if after else ""
    return ["```python", *code.format(name=place, cut=cut).splitlines(), "```"]


def _stops(origin: ModelToExport) -> Iterator[str]:
    if origin.kind == "policy":
        yield from [f"It stops at {', '.join(f'`{one}`' for one in origin.end_texts)}.", ""]
