"""A plan in words: the page of `tiebreak plan`, and the line that a stage prints before it loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tiebreak.errors import counted
from tiebreak.plan.devices import GIB
from tiebreak.plan.planner import StagePlan
from tiebreak.plan.scorers import Scorer
from tiebreak.plan.work import ROWS_ASSUMED

NAMES = {"kv_cache": "KV cache", "reward_models": "reward models"}
NEVER_ON_A_GPU = "Memory was compared with measured peaks on a CPU only; none of this has been run on a GPU."


def gib(size: float) -> str:
    """`12.3 GiB`, `140 MiB`."""
    value = size / GIB
    return f"{value:,.1f} GiB" if value >= 1 else f"{1024 * value:.3g} MiB"


def short(number: float) -> str:
    """`1.2 million`, `8.03 billion`."""
    for name, factor in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if number >= factor:
            return f"{number / factor:.3g} {name}"
    return f"{number:,.0f}"


def duration_of(hours: float) -> str:
    """`3.2 h`, `12 min`."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{max(hours * 60, 0.1):.2g} min"


def lines_of(plan: StagePlan) -> Iterator[str]:
    """The plan of a stage."""
    setting = plan.setting
    hardware, shape, numbers = setting.hardware, setting.shape, setting.numbers
    spread = f" under {hardware.name}" if hardware.name else ""
    trained = "all trained" if numbers.trains_base else f"{short(plan.trained)} new ones train"
    yield f"{setting.stage}: {shape.name}, {short(shape.parameters)} parameters; {trained}"
    yield f"  on {hardware.count} × {hardware.device.title} ({gib(plan.available)}){spread}"
    yield ""
    yield f"  memory per device, at its peak ({plan.phase})"
    kinds = plan.memory.kinds()
    for name, size in kinds.items():
        yield f"    {NAMES.get(name, name):<13} {gib(size):>12}{_note(plan, name)}"
    yield f"    {'total':<13} {gib(plan.memory.total):>12}  {'fits' if plan.fits else 'does not fit'}"
    if plan.host:
        yield f"    {'host':<13} {gib(plan.host):>12}  of each machine's own memory, while the model loads"
    yield from map(_scorer_line, setting.scorers)
    state = f"{plan.largest_pass:,}" if plan.largest_pass else "none fits"
    yield f"  training.tokens_per_pass: {setting.tokens_per_pass:,}; the largest that fits: {state}"
    yield ""
    yield f"  rows         {plan.rows.count:,} of {plan.rows.tokens:,.0f} tokens ({plan.rows.source})"
    yield f"  steps        {plan.work.steps:,}"
    yield f"  tokens       {short(plan.work.tokens)}"
    yield f"  operations   {plan.work.operations:.2e}"
    yield f"  time         {duration_of(plan.hours)}" + (f", ${plan.cost:,.2f}" if plan.cost is not None else "")
    if not plan.fits:
        yield ""
        yield "  what fits instead:"
        yield from (f"    {one}" for one in plan.nearest)


def _scorer_line(scorer: Scorer) -> str:
    """`    runs/reward: an adapter on the policy's weights`"""
    if scorer.apart:
        held = f"its own {short(scorer.shape.parameters)} parameters ({scorer.apart})"
    else:
        held = "an adapter on the policy's weights" + (" (assumed)" if scorer.is_assumed else "")
    return f"    {scorer.name}: {held}"


def _note(plan: StagePlan, name: str) -> str:
    setting = plan.setting
    if name == "weights":
        kind = (
            setting.adapter.quantize.upper()
            if setting.numbers.quantized
            else {2: "bf16", 4: "float32"}[setting.size_held]
        )
        shared = f", 1/{setting.hardware.count} and what is gathered" if setting.hardware.shards_weights else ""
        return f"  {kind}{shared}"
    if name == "adapters":
        mounted = sum(not scorer.apart for scorer in setting.scorers)
        return f"  {counted(setting.adapters + mounted, 'adapter')}, float32"
    if name == "activations":
        return f"  {setting.tokens_per_pass:,} tokens a pass" if plan.phase == "training" else ""
    return ""


def warning(plan: StagePlan, free: int) -> str:
    """One line for a stage that will hardly fit into what is free on its device."""
    fits = f"; what fits: {plan.nearest[0]}" if plan.nearest else ""
    return f"it needs about {gib(plan.memory.total)} at its peak ({plan.phase}), and {gib(free)} are free{fits}"


def table_of(plans: Sequence[StagePlan]) -> Iterator[str]:
    """A recipe's stages, one a line."""
    yield f"  {'stage':<8} {'memory':>10}  {'fits':<4} {'largest pass':>12} {'steps':>8} {'time':>9} {'cost':>10}"
    for plan in plans:
        cost = f"${plan.cost:,.2f}" if plan.cost is not None else ""
        yield (
            f"  {plan.setting.stage:<8} {gib(plan.memory.total):>10}  {'yes' if plan.fits else 'no':<4} "
            f"{plan.largest_pass:>12,} {plan.work.steps:>8,} {duration_of(plan.hours):>9} {cost:>10}"
        ).rstrip()
    hours = sum(plan.hours for plan in plans)
    costs = [plan.cost for plan in plans if plan.cost is not None]
    assumed = [plan.setting.stage for plan in plans if plan.rows.is_assumed]
    yield f"  {'total':<8} {'':>10}  {'':<4} {'':>12} {'':>8} {duration_of(hours):>9} " + (
        f"{f'${sum(costs):,.2f}':>10}" if costs else ""
    )
    if assumed:
        yield (
            f"  The number of rows of {', '.join(assumed)} is assumed, because their data is not there yet: "
            f"{ROWS_ASSUMED:,}; --rows and --row-tokens state it."
        )
