"""The plan of a stage: memory by kind on each device, the largest pass, steps, time, and what fits if this does not.

    plan_stage("dpo", config, Hardware(find_device("h100"), 8, "zero3"))

Arithmetic on the model's config.json and the stage's configuration. Memory was compared with measured peaks on a CPU
(benchmarks/plan.py); nothing here was ever measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tiebreak.config import AdapterConfig, OptimizerConfig
from tiebreak.config.adapter import ON_QUANTIZED, as_saved
from tiebreak.models.shardable import obstacles, require_shardable
from tiebreak.plan.devices import GIB
from tiebreak.plan.hardware import SHARDED_LOAD, Hardware
from tiebreak.plan.locate import OWN_BASE, PlannedModel, locate_model
from tiebreak.plan.memory import (
    FLOAT32,
    FOUR_BITS,
    FRAGMENTED,
    HEAD_CHUNK,
    HEAP_SLACK,
    INT8,
    MOMENTS,
    NF4,
    Memory,
    Numbers,
    activation_bytes,
    cache_bytes,
    forward_bytes,
    logit_bytes,
    weight_bytes,
)
from tiebreak.plan.scorers import ANOTHER_FORMAT, Scorer, scorers_of
from tiebreak.plan.shape import FAMILY, Shape
from tiebreak.plan.trained import trained_parameters
from tiebreak.plan.work import (
    SHARE_OF_PEAK,
    Rows,
    Work,
    forward_operations,
    head_operations,
    rows_of,
    steps_of,
    training_operations,
)
from tiebreak.stages import find_stage

TOKENS_PER_PASS = {False: 640, True: 2048}
"""`training.tokens_per_pass: null`, on the CPU and on a GPU (tiebreak.training.passes)"""
TOKENS_WITHOUT_GRADIENTS = 1024
"""of a pass that only scores (preference.policy.rewards.TOKENS_AT_ONCE)"""
PADDED_ROWS = 16
"""scored together by a model that is not packed (preference.policy.rewards.ROWS_AT_ONCE)"""
LARGEST_PASS = 2**20
TOKENS_CHECKED, LOGITS_CHECKED, SHORTEST = 256, 4, 0.8
"""of the batch that is compared before training: its tokens (tiebreak.packed.proof), its tables of logits (with their
gradients), and the shortest row's length as a share of the mean"""
LIVE_PARAMETERS = 10**9
"""DeepSpeed's stage3_max_live_parameters"""
LEARNED = {"demonstrations": 0.5, "preferences": 2 / 3, "prompts": 0.5}
"""by the key that names a stage's rows: the share of their tokens that the loss is on; answers are as long as prompts"""


def rows_key(stage: str) -> str:
    """The key of a stage's configuration that names its rows; empty if the stage has none."""
    return next((key for key in find_stage(stage).inputs if key in LEARNED), "")


@dataclass(frozen=True)
class Setting:
    """The inputs of a plan, some of which may be changed to make it fit."""

    stage: str
    shape: Shape
    adapter: AdapterConfig
    training: OptimizerConfig
    config: Any
    hardware: Hardware
    tokens_per_pass: int
    row_tokens: float = 0.0
    """mean length of a row; 0: short"""
    adapters: int = 1
    """on the base weights: the one that trains, and its reference"""
    copies: int = 0
    """of the whole model beside the one that trains: its reference"""
    scorers: tuple[Scorer, ...] = ()
    """reward models, the guard's among them"""
    model: PlannedModel | None = None
    """the one that trains, with the name of its base weights"""

    @property
    def scores(self) -> bool:
        """Whether the model is a reward model, with a score head."""
        return find_stage(self.stage).makes == "reward"

    @property
    def trained(self) -> int:
        """Parameters that train."""
        return trained_parameters(self.shape, self.adapter, scores=self.scores)

    @property
    def held(self) -> int:
        """Parameters with gradients and moments: those that train, and the LoRA that they are stacked on, which is a part
        of the same matrices (tiebreak.models.adapters.stacked)."""
        below = self.model.below if self.model else None
        return self.trained + (trained_parameters(self.shape, below) if below else 0)

    @property
    def is_half(self) -> bool:
        """Whether models are loaded in 16 bits."""
        precision = self.training.precision
        return precision in ("bfloat16", "float16") or (precision == "auto" and self.hardware.device.is_gpu)

    @property
    def size_held(self) -> int:
        """Bytes of a weight that is not quantised. Whole weights train in float32 (tiebreak.models.load.load_policy), of
        which DeepSpeed in 16 bits keeps a copy and computes with them rounded."""
        return FLOAT32 if trains_base(self.adapter) and not self.hardware.is_deepspeed else self.numbers.size

    @property
    def numbers(self) -> Numbers:
        """Formats, by precision and device."""
        half, quantized, full = self.is_half, quantized_bytes(self.adapter), trains_base(self.adapter)
        lora = self.adapter.method in ("lora", "qlora")
        return Numbers(
            size=2 if half else 4,
            mixed=half,
            quantized=quantized,
            fused=lora and not (half or quantized or self.hardware.shards_weights),
            checkpointing=self.training.gradient_checkpointing,
            rank=rank_of(self.adapter, self.model) if lora else 0,
            trains_base=full,
        )


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage."""

    setting: Setting
    trained: int
    """parameters that train"""
    memory: Memory
    """of the fullest device, at its peak"""
    phase: str
    """when that is"""
    largest_pass: int
    """the largest training.tokens_per_pass that fits; 0: none does"""
    host: float
    """bytes of each machine's own memory: the whole model in every process while it loads, and what is offloaded"""
    rows: Rows
    work: Work
    hours: float
    price: float | None
    """dollars an hour and device"""
    nearest: tuple[str, ...] = field(default=())
    """settings that fit where this one does not"""

    @property
    def available(self) -> int:
        """Bytes of a device."""
        return self.setting.hardware.device.memory

    @property
    def fits(self) -> bool:
        """Whether the peak fits into a device."""
        return self.memory.total <= self.available

    @property
    def written(self) -> PlannedModel:
        """The model that the stage will write."""
        setting, saved = self.setting, as_saved(self.setting.adapter)
        before = setting.model or PlannedModel(setting.shape, saved)
        saved = saved.model_copy(update={"r": rank_of(saved, before)})
        if trains_base(saved):
            return PlannedModel(setting.shape, saved, str(Path(setting.config.output) / "final"), has_adapter=True)
        return replace(before, adapter=saved, has_adapter=True, below=None)

    @property
    def certain_not_to_fit(self) -> bool:
        """Whether the weights alone do not fit: then only other hardware or fewer bits help."""
        return self.memory.loaded > self.available

    @property
    def cost(self) -> float | None:
        """Dollars."""
        return None if self.price is None else self.hours * self.price * self.setting.hardware.count


def rank_of(adapter: AdapterConfig, model: PlannedModel | None) -> int:
    """The rank of an adapter, with that of the LoRA that it is stacked on."""
    below = model.below if model else None
    return adapter.r + (below.r if below else 0)


def quantized_bytes(adapter: AdapterConfig) -> float:
    """Bytes of a quantised weight; 0: they are not quantised."""
    if adapter.quantize in ("nf4", "fp4"):
        return NF4 if adapter.double_quantize else FOUR_BITS
    return INT8 if adapter.quantize == "int8" else 0.0


def trains_base(adapter: AdapterConfig) -> bool:
    """Whether the base weights themselves train."""
    return str(adapter.method) in ("full", "freeze", "frozen")


def plan_stage(
    stage: str,
    config: Any,
    hardware: Hardware,
    *,
    shape: Shape | None = None,
    adapter: AdapterConfig | None = None,
    model: PlannedModel | None = None,
    made: Mapping[str, PlannedModel] | None = None,
    price: float | None = None,
    share: float = SHARE_OF_PEAK,
    row_count: int | None = None,
    row_tokens: float | None = None,
    with_nearest: bool = True,
) -> StagePlan:
    """The plan of a training stage.

    Args:
        config: its configuration.
        shape: the model's, whose base weights are not known by name; None: of `config.policy`.
        adapter: the one that the policy will have; None: the configuration's, the policy's own, or the default.
        model: the policy before this stage; None: of `config.policy`.
        made: models of earlier stages of a recipe, by output folder: reward models are looked for there first.
        price: dollars an hour and device.
        share: of the devices' peak rate that training reaches.
        row_count: the number of its rows; None: counted where that is cheap.
        row_tokens: their mean length.

    Raises:
        ConfigError: weights that are to be sharded as they load, and cannot be.
        ModelError: the model is not there.
    """
    policy = trained_model(config, shape, adapter, model)
    source = str(getattr(config, rows_key(stage), ""))
    rows = rows_of(source, config.training.max_length_tokens, row_count, row_tokens)
    setting = _setting_of(stage, config, hardware, policy, rows.tokens, made or {})
    if hardware.loads_in_shards:
        require_shardable(**_of_its_load(setting))
    memory, phase = peak(setting)
    work = work_of(setting, rows)
    plan = StagePlan(
        setting,
        setting.trained,
        memory,
        phase,
        _largest_pass(setting),
        _host_bytes(setting),
        rows,
        work,
        work.seconds(hardware, share) / 3600,
        price,
    )
    return replace(plan, nearest=tuple(nearest(setting))) if with_nearest and not plan.fits else plan


def _setting_of(
    stage: str,
    config: Any,
    hardware: Hardware,
    policy: PlannedModel,
    row_tokens: float,
    made: Mapping[str, PlannedModel],
) -> Setting:
    """What the stage's memory and time follow from, with the models that it holds beside its policy."""
    training: OptimizerConfig = config.training
    has_reference = _has_reference(stage, config)
    return Setting(
        stage,
        policy.shape,
        policy.adapter,
        training,
        config,
        hardware,
        training.tokens_per_pass or TOKENS_PER_PASS[hardware.device.is_gpu],
        row_tokens,
        2 if has_reference else 1,
        1 if trains_base(policy.adapter) and has_reference else 0,
        scorers_of(config, policy, made),
        policy,
    )


def trained_model(
    config: Any, shape: Shape | None, adapter: AdapterConfig | None, model: PlannedModel | None
) -> PlannedModel:
    """The model that a stage trains: base weights, and the adapter that it will have. See plan_stage."""
    if model is None:
        model = locate_model(config.policy) if shape is None else PlannedModel(shape, AdapterConfig())
    wanted = adapter or config.adapter or model.adapter
    if wanted.start == "merge":  # its base is a new one
        return replace(model, adapter=wanted, base=str(Path(config.output) / OWN_BASE), base_sha256="")
    stacks = wanted.start == "stack" and model.has_adapter and model.adapter.method == "lora"
    return replace(model, shape=shape or model.shape, adapter=wanted, below=model.adapter if stacks else None)


def _has_reference(stage: str, config: Any) -> bool:
    """Whether a second model, or adapter, answers beside the one that trains."""
    return stage == "ppo" or (stage == "dpo" and getattr(config, "algorithm", "dpo") in ("dpo", "kto"))


# --- memory


def peak(setting: Setting) -> tuple[Memory, str]:
    """Memory at its peak, and the phase of it."""
    phases = [(_while_training(setting), "training"), (_while_proving(setting), "the check of one batch")]
    if setting.stage == "ppo":
        phases.append((_while_sampling(setting), "sampling"))
    if getattr(setting.config, "guard", None) is not None:
        phases.append((_while_guarding(setting), "the guard's answers"))
    if any(scorer.apart for scorer in setting.scorers):
        phases.append((_while_scoring(setting), "scoring"))
    memory, phase = max(phases, key=lambda each: each[0].total)
    if not setting.hardware.device.is_gpu:
        memory = replace(memory, overhead=memory.overhead + HEAP_SLACK * (memory.total - memory.loaded))
    return memory, phase


def _lasting(setting: Setting, *, gathered: bool = False) -> Memory:
    """Memory that stays through all phases.

    Args:
        gathered: all weights are whole, as ZeRO-3 gathers them for sampling, and as they are before they are sharded.
    """
    shape, numbers, hardware = setting.shape, setting.numbers, setting.hardware
    trained = setting.held
    numbers = replace(numbers, size=setting.size_held)
    weights = weight_bytes(shape, numbers, scores=setting.scores)
    parts = hardware.count if hardware.shards_weights else 1
    here = weights if gathered or parts == 1 else weights / parts + _gathered_at_once(shape, numbers)
    if hardware.offloads_weights and not gathered:
        here -= weights / parts
    size = setting.size_held if numbers.trains_base else FLOAT32
    held: float = 0 if numbers.trains_base else trained * setting.adapters * FLOAT32
    held += sum(_adapter_bytes(scorer) for scorer in setting.scorers if not scorer.apart)
    whole_gradients = trained * size
    gradients = whole_gradients / (hardware.count if hardware.shards_gradients else 1)
    if hardware.count > 1 and hardware.distributed == "ddp":
        gradients *= 2  # DDP's buckets
    copies = FLOAT32 if hardware.is_deepspeed else 0
    optimizer = (
        trained * (MOMENTS[setting.training.optimizer] + copies) / (hardware.count if hardware.shards_optimizer else 1)
    )
    return Memory(
        weights=here + setting.copies * shape.parameters * FLOAT32,
        adapters=held / parts,
        reward_models=sum(_own_bytes(scorer, setting) for scorer in setting.scorers if scorer.apart),
        gradients=gradients,
        optimizer=0 if hardware.offloads_optimizer else optimizer,
        overhead=hardware.device.reserved + (FRAGMENTED * hardware.device.memory if hardware.device.is_gpu else 0),
    )


def _adapter_bytes(scorer: Scorer) -> float:
    return trained_parameters(scorer.shape, scorer.model.adapter, scores=True) * FLOAT32


def _own_bytes(scorer: Scorer, setting: Setting) -> float:
    """A reward model with weights of its own, whole on every device."""
    own = weight_bytes(scorer.shape, _numbers_of(scorer, setting), scores=True, prepared=False)
    return own if trains_base(scorer.model.adapter) else own + _adapter_bytes(scorer)


def _numbers_of(scorer: Scorer, setting: Setting) -> Numbers:
    size = 2 if setting.is_half else FLOAT32
    return Numbers(size=size, mixed=False, quantized=quantized_bytes(scorer.model.adapter), fused=False)


def _gathered_at_once(shape: Shape, numbers: Numbers) -> float:
    """Weights gathered from the other devices at a time: a block and the next one, the embedding, or what DeepSpeed lets
    live by default."""
    return min(max(2 * shape.block, shape.embedding, LIVE_PARAMETERS), shape.parameters) * numbers.size


def _while_training(setting: Setting) -> Memory:
    shape, tokens = setting.shape, float(setting.tokens_per_pass)
    scores = setting.scores
    stored = 0.0 if scores else tokens * shape.hidden * FLOAT32  # the head's slopes
    return replace(
        _lasting(setting),
        activations=activation_bytes(shape, setting.numbers, tokens) + stored,
        logits=0.0 if scores else logit_bytes(shape, min(HEAD_CHUNK, tokens)),
    )


def _while_proving(setting: Setting) -> Memory:
    """One batch through the model's own forward, with all of its logits: the rows that fit into some tokens, or the
    shortest one (tiebreak.training.passes.batch_to_check)."""
    shape, together = setting.shape, 2 if rows_key(setting.stage) == "preferences" else 1
    tokens = max(TOKENS_CHECKED, together * SHORTEST * setting.row_tokens)
    plain = replace(setting.numbers, fused=False, checkpointing=False)
    scores = setting.scores
    return replace(
        _lasting(setting, gathered=not setting.hardware.loads_in_shards),
        activations=activation_bytes(shape, plain, tokens),
        logits=0.0 if scores else logit_bytes(shape, tokens, LOGITS_CHECKED),
    )


def _while_sampling(setting: Setting) -> Memory:
    """A rollout: keys and values of all its episodes, and the policy's adapter added to a copy of the weights (float32)."""
    config, answer = setting.config, setting.config.sampling.max_new_tokens
    if config.vllm is not None:
        activations = forward_bytes(setting.shape, setting.numbers, TOKENS_WITHOUT_GRADIENTS)
        return replace(_lasting(setting, gathered=True), activations=activations)
    rows = max(config.episodes_per_rollout // setting.hardware.count, 1)
    return _while_drawing(setting, rows, max(setting.training.max_length_tokens - answer, 1) + answer)


def _while_guarding(setting: Setting) -> Memory:
    """The answers that the guard scores, all prompts of a device at once, by our own sampler (preference.guarded)."""
    rows = -(-setting.config.guard.max_prompts // setting.hardware.count)
    longest, answer = setting.training.max_length_tokens, setting.config.sampling.max_new_tokens
    prompt = max(longest - answer, 1) if setting.stage == "ppo" else longest
    return _while_drawing(setting, rows, prompt + answer)


def _while_drawing(setting: Setting, rows: int, columns: int) -> Memory:
    """Answers drawn by our own sampler.

    Args:
        rows: drawn at once.
        columns: tokens of a row, prompt and answer.
    """
    shape, numbers = setting.shape, setting.numbers
    lasting = _lasting(setting, gathered=True)
    exact = numbers.size == FLOAT32 and not numbers.quantized and not numbers.trains_base
    merged = shape.in_linears * numbers.size if exact else 0
    drawing = rows * shape.vocabulary * (2 * FLOAT32 + 3 * 8)  # logits, and the draw's tables in float64
    return replace(
        lasting,
        weights=lasting.weights + merged,
        activations=forward_bytes(shape, numbers, TOKENS_WITHOUT_GRADIENTS),
        logits=max(drawing, logit_bytes(shape, HEAD_CHUNK)),
        kv_cache=cache_bytes(shape, numbers, rows, columns),
    )


def _while_scoring(setting: Setting) -> Memory:
    """Reward models of their own weights, one after the other."""
    apart = [scorer for scorer in setting.scorers if scorer.apart]
    return replace(_lasting(setting), activations=max(_bytes_of_scoring(scorer, setting) for scorer in apart))


def _bytes_of_scoring(scorer: Scorer, setting: Setting) -> float:
    """One block's temporaries, for packed rows or, of families that may not be packed, for padded ones."""
    longest = setting.training.max_length_tokens
    rows = max(getattr(setting.config, "episodes_per_rollout", PADDED_ROWS) // setting.hardware.count, 1)
    packed = scorer.shape.model_type in FAMILY
    tokens = max(TOKENS_WITHOUT_GRADIENTS, longest) if packed else min(rows, PADDED_ROWS) * longest
    return forward_bytes(scorer.shape, _numbers_of(scorer, setting), tokens)


def _largest_pass(setting: Setting) -> int:
    """By bisection: memory grows with the pass."""
    memory = setting.hardware.device.memory

    def fits(tokens: int) -> bool:
        return peak(replace(setting, tokens_per_pass=tokens))[0].total <= memory

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= LARGEST_PASS and fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _host_bytes(setting: Setting) -> float:
    """Every process loads the whole model before it is sharded. A file in the number format of training is mapped, and all
    processes share its pages; otherwise each has a copy, which is what is counted here. Offloaded parts stay there."""
    hardware, numbers = setting.hardware, setting.numbers
    if not hardware.device.is_gpu:
        return 0.0
    models = [setting.shape, *(scorer.shape for scorer in setting.scorers if scorer.apart)]
    whole = max(shape.parameters for shape in models) * numbers.size
    here = min(hardware.count, 8)
    lasting = setting.shape.parameters * numbers.size if hardware.offloads_weights else 0.0
    if hardware.offloads_optimizer:
        lasting += setting.held * (MOMENTS[setting.training.optimizer] + FLOAT32)
    return max(whole * here, lasting)


# --- what fits


Change = Callable[[Setting], "tuple[Setting, str] | None"]


def nearest(setting: Setting) -> Iterator[str]:
    """Settings that fit, the least changes first: each alone, then together, then more devices."""
    tried: list[tuple[Setting, list[str]]] = [(setting, [])]
    for change in (_smaller_pass, _checkpointing, _nf4, _sharding):
        made = change(setting)
        if made and _fits(made[0]):
            yield made[1]
    for change in (_checkpointing, _nf4, _sharding):
        before, words = tried[-1]
        made = change(before)
        if made:
            tried.append((made[0], [*words, made[1]]))
    together, words = tried[-1]
    if (smaller := _smaller_pass(together)) and _fits(smaller[0]):
        together, words = smaller[0], [*words, smaller[1]]
    if len(words) > 1 and _fits(together):
        yield " and ".join(words)
    elif not _fits(together):
        yield from _more_devices(together, words)


def _fits(setting: Setting) -> bool:
    return peak(setting)[0].total <= setting.hardware.device.memory


def _smaller_pass(setting: Setting) -> tuple[Setting, str] | None:
    largest = _largest_pass(setting)
    if not 0 < largest < setting.tokens_per_pass:
        return None
    longest = setting.training.max_length_tokens
    if largest < longest:  # a row cannot be split
        return None
    tokens = largest // 64 * 64 if largest >= 64 else largest
    return replace(setting, tokens_per_pass=max(tokens, 1)), f"training.tokens_per_pass: {max(tokens, 1)}"


def _checkpointing(setting: Setting) -> tuple[Setting, str] | None:
    if setting.training.gradient_checkpointing or setting.adapter.method == "prefix":
        return None
    training = setting.training.model_copy(update={"gradient_checkpointing": True})
    return replace(setting, training=training), "training.gradient_checkpointing: true"


def _nf4(setting: Setting) -> tuple[Setting, str] | None:
    able = setting.adapter.method in ON_QUANTIZED["nf4"]
    if setting.adapter.quantize != "none" or not able or setting.hardware.shards_weights:
        return None
    adapter = setting.adapter.model_copy(update={"quantize": "nf4"})
    scorers = tuple(map(_beside_quantized, setting.scorers))
    return replace(setting, adapter=adapter, scorers=scorers), "adapter.quantize: nf4"


def _beside_quantized(scorer: Scorer) -> Scorer:
    """A finished reward model keeps its number format, so it is not an adapter on weights of another one."""
    kept = bool(scorer.apart) or scorer.is_assumed or scorer.model.adapter.quantize == "nf4"
    return scorer if kept else replace(scorer, apart=ANOTHER_FORMAT)


def _sharding(setting: Setting) -> tuple[Setting, str] | None:
    hardware, name = setting.hardware, _sharded(setting)
    already = hardware.loads_in_shards if name == SHARDED_LOAD else hardware.shards_weights
    if hardware.count < 2 or already or not hardware.device.is_gpu or setting.adapter.quantize != "none":
        return None
    return replace(setting, hardware=hardware.spread(name)), f"--accelerate {name}"


def _sharded(setting: Setting) -> str:
    """The accelerate file that shards its weights, as they load if the stage can."""
    return "zero3" if any(obstacles(**_of_its_load(setting))) else SHARDED_LOAD


def _of_its_load(setting: Setting) -> dict[str, Any]:
    """What decides whether its weights can be sharded as they load (tiebreak.models.shardable)."""
    model = setting.model
    return {
        "adapter": setting.adapter,
        "algorithm": getattr(setting.config, "algorithm", setting.stage),
        "brought": (model.below or model.adapter) if model and model.has_adapter else None,
        "guarded": getattr(setting.config, "guard", None) is not None,
    }


def _more_devices(setting: Setting, words: list[str]) -> Iterator[str]:
    plain = setting.adapter.model_copy(update={"quantize": "none"})
    words = [word for word in words if "quantize" not in word and "--accelerate" not in word]
    if not setting.hardware.device.is_gpu:
        yield "more memory, or a GPU: --gpu h100"
        return
    for count in (2, 4, 8, 16, 32, 64):
        if count <= setting.hardware.count:
            continue
        unquantized = replace(setting, adapter=plain)
        name = _sharded(unquantized)
        spread = replace(setting.hardware, count=count).spread(name)
        if _fits(replace(unquantized, hardware=spread)):
            yield " and ".join([*words, f"--accelerate {name} on {count} devices"])
            return
    yield f"no number of devices up to 64 with {setting.hardware.device.memory / GIB:.0f} GiB holds it: a larger device"


# --- work


def work_of(setting: Setting, rows: Rows) -> Work:
    """Steps, tokens and operations."""
    training, count = setting.training, setting.hardware.count
    batch = training.per_device_batch_size * training.gradient_accumulation_steps * count
    if setting.stage == "ppo":
        return _work_of_ppo(setting, rows, batch)
    epochs = getattr(training, "epochs", 1.0)
    steps = steps_of(rows.count, batch, epochs, training.max_steps)
    seen = float(min(steps * batch, rows.count * epochs)) if not training.max_steps else float(steps * batch)
    tokens = seen * rows.tokens
    context = min(rows.tokens, training.max_length_tokens)
    operations = _trained(setting, tokens, context)
    learned = LEARNED.get(rows_key(setting.stage), 1.0)
    if not setting.scores:
        operations += head_operations(setting.shape, tokens * learned, trains=True)
    if setting.stage == "dpo" and _has_reference(setting.stage, setting.config):  # once for each row
        once = min(seen, rows.count) * rows.tokens
        operations += forward_operations(setting.shape, once, context)
        operations += head_operations(setting.shape, once * learned, trains=False)
    return Work(steps, tokens, operations)


def _trained(setting: Setting, tokens: float, context: float) -> float:
    return training_operations(
        setting.shape,
        tokens,
        context,
        frozen=not trains_base(setting.adapter),
        checkpointing=setting.training.gradient_checkpointing,
    )


def _work_of_ppo(setting: Setting, rows: Rows, batch: int) -> Work:
    """Each episode: sampling, the policy's, the reference's and every reward model's pass, and the updates."""
    config, shape, numbers = setting.config, setting.shape, setting.numbers
    a_rollout = config.ppo_epochs * max(config.episodes_per_rollout // batch, 1)
    steps = config.rollouts * a_rollout
    if setting.training.max_steps:
        steps = min(steps, setting.training.max_steps)
    rollouts = -(-steps // a_rollout)
    answer = config.sampling.max_new_tokens
    prompt = min(rows.tokens, max(setting.training.max_length_tokens - answer, 1))
    length = prompt + answer
    tokens = rollouts * config.episodes_per_rollout * length
    passes = 3  # sampling, policy, reference
    learned = tokens * answer / length
    operations = passes * forward_operations(shape, tokens, length)
    operations += sum(forward_operations(scorer.shape, tokens, length) for scorer in setting.scorers)
    operations += 3 * head_operations(shape, learned, trains=False)
    operations += config.ppo_epochs * (_trained(setting, tokens, length) + head_operations(shape, learned, trains=True))
    rows_here = max(config.episodes_per_rollout // setting.hardware.count, 1)
    a_token = weight_bytes(shape, numbers) + cache_bytes(shape, numbers, rows_here, length)
    return Work(steps, tokens, operations, rollouts * answer * a_token)
