"""GGUF files and Modelfiles: read again by other programs, they hold the same weights, words, template and ends."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from support import run_here
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig, Qwen2Config

from tiebreak.errors import HandoffError
from tiebreak.export import gguf_file, ollama, vocabulary
from tiebreak.export.go_template import render_go
from tiebreak.export.model_to_export import ModelToExport, find_model_to_export

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why are\n my leaves pale?"},
    {"role": "assistant", "content": "They lack iron."},
    {"role": "user", "content": "{{ .System }} 2024?"},
]


@pytest.fixture(scope="module")
def runs(finished_recipe: Path) -> Path:
    return finished_recipe / "runs"


@pytest.fixture(scope="module")
def origin(runs: Path) -> ModelToExport:
    return find_model_to_export(str(runs / "dpo"))


@pytest.fixture(scope="module")
def exported(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The DPO policy for Ollama."""
    folder = tmp_path_factory.mktemp("export") / "dpo"
    status, stderr = run_here("export", runs / "dpo", "--to", "ollama", "--output", folder)
    assert status == 0, stderr
    assert f"next: ollama create dpo -f {folder}/Modelfile" in stderr
    return folder


def read_modelfile(path: Path) -> dict[str, list[str]]:
    """Ollama's own grammar: an instruction, then the rest of the line, or text between triple quotes."""
    found: dict[str, list[str]] = {}
    for name, quoted, plain in re.findall(r'^([A-Z]+) (?:"""(.*?)"""|([^\n]*))$', path.read_text(), re.S | re.M):
        found.setdefault(name, []).append(quoted or plain)
    return found


@torch.no_grad()
def logps(model: Any, ids: list[int]) -> torch.Tensor:
    return torch.log_softmax(model(torch.tensor([ids])).logits.float(), -1)


def test_the_file_answers_as_the_run(exported: Path, runs: Path, tmp_path: Path) -> None:
    """f16 of the command, and q8_0 of the same weights, through transformers' reader."""
    merged = AutoModelForCausalLM.from_pretrained(runs / "sft" / "final" / "merged")
    ids = AutoTokenizer.from_pretrained(runs / "sft" / "final")("Why are my basil leaves pale?")["input_ids"]
    sft = find_model_to_export(str(runs / "sft"))
    gguf_file.write_gguf(sft, merged, tmp_path / "q8.gguf", "q8_0")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="q8.gguf", dtype=torch.float32)
    apart = (logps(read, ids) - logps(merged, ids)).abs().max()
    assert 1e-4 < apart < 0.5
    record = json.loads((exported / "export.json").read_text())
    assert 0 < record["largest_difference"] < 0.05


def test_the_file_has_words_template_and_ends(exported: Path, origin: ModelToExport) -> None:
    file = gguf.GGUFReader(exported / "model-f16.gguf")
    fields = {name: field.contents() for name, field in file.fields.items()}
    tokenizer = origin.chat.tokenizer
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields["tokenizer.ggml.eos_token_id"] == origin.chat.end_id
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    types = fields["tokenizer.ggml.token_type"]
    assert {n for n, kind in enumerate(types) if kind == gguf.TokenType.CONTROL} == set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    again = AutoTokenizer.from_pretrained(exported, gguf_file="model-f16.gguf")
    text = "Two  spaces, 1234 naïve — 日本語 🙂<|im_end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_modelfile_says_what_the_template_says(exported: Path, origin: ModelToExport) -> None:
    found = read_modelfile(exported / "Modelfile")
    assert found["FROM"] == ["./model-f16.gguf"]
    assert found["PARAMETER"] == [f'stop "{text}"' for text in origin.end_texts]
    [template] = found["TEMPLATE"]
    for messages in (CHAT, CHAT[1:], CHAT[1:2]):
        wanted = origin.chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert render_go(template, messages) == wanted


LLAMA_CPP = """
import json, sys
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 256, 1, False
server = xllamacpp.Server(params)
rows = []
for ids in json.loads(sys.argv[2]):
    asked = {"prompt": ids, "n_predict": 1, "n_probs": 100_000, "temperature": 1.0, "top_k": 0, "cache_prompt": False}
    (token,) = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
    rows.append({each["id"]: each["logprob"] for each in token["top_logprobs"]})
chat = {"messages": json.loads(sys.argv[3]), "max_tokens": 1}
print(json.dumps([rows, server.handle_chat_completions(chat)["usage"]["prompt_tokens"]]))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp, a build of llama.cpp, is not installed"
)
def test_llama_cpp_answers_as_the_run(exported: Path, runs: Path, origin: ModelToExport) -> None:
    """All log-probabilities after two texts, and the length of a rendered conversation."""
    probe = json.loads((runs / "dpo/final/probe.json").read_text())["input_ids"]
    prompts, file = [probe[:3], probe[:-1]], str(exported / "model-f16.gguf")
    command = [sys.executable, "-c", LLAMA_CPP, file, json.dumps(prompts), json.dumps(CHAT[1:2])]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr[-2000:]
    rows, rendered = json.loads(made.stdout.splitlines()[-1])
    read = AutoModelForCausalLM.from_pretrained(exported, gguf_file="model-f16.gguf", dtype=torch.float32)
    for ids, row in zip(prompts, rows, strict=True):
        wanted = logps(read, ids)[0, -1]
        assert len(row) == len(wanted)
        assert max(abs(value - float(wanted[int(number)])) for number, value in row.items()) < 0.05
    assert rendered == len(
        origin.chat.tokenizer.apply_chat_template(CHAT[1:2], add_generation_prompt=True)["input_ids"]
    )


# --- weights


def test_rotations_of_neighbours_are_those_of_halves() -> None:
    """A rotation of neighbours (llama.cpp) of the rewritten rows is that of halves (transformers), in another order."""
    heads, size = 3, 8
    rows = torch.randn(heads * size, 5)
    angle = torch.rand(size // 2)
    half = rows.view(heads, 2, size // 2, 5)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    wanted = torch.stack([half[:, 0] * cos - half[:, 1] * sin, half[:, 1] * cos + half[:, 0] * sin], 1)
    pairs = gguf_file.interleaved(rows, heads).view(heads, size // 2, 2, 5)
    found = torch.stack([pairs[:, :, 0] * cos - pairs[:, :, 1] * sin, pairs[:, :, 1] * cos + pairs[:, :, 0] * sin], 1)
    torch.testing.assert_close(found, wanted)


def test_factors_of_long_contexts_are_transformers_own() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 64
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 5e5 ** -(torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(plain / gguf_file.llama3_factors(rope, 32), scaled)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            LlamaConfig(architectures=["GPT2LMHeadModel"]),
            "GGUF is written for LlamaForCausalLM, .* and this is GPT2LMHead",
        ),
        (MistralConfig(architectures=["MistralForCausalLM"], sliding_window=4096), "slides over 4096 tokens"),
        (LlamaConfig(architectures=["LlamaForCausalLM"], attention_bias=True), "its layers have biases"),
        (
            LlamaConfig(
                architectures=["LlamaForCausalLM"],
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            ),
            "rope scaling of type 'dynamic' is not written",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(config: Any, message: str) -> None:
    with pytest.raises(HandoffError, match=f"{message}.*convert_hf_to_gguf"):
        gguf_file.require_supported(config, "run")
    gguf_file.require_supported(Qwen2Config(architectures=["Qwen2ForCausalLM"]), "run")


# --- words


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
MERGED = BYTES | {"use_regex": False}


def split(*steps: dict[str, Any], whole: bool = False, **changes: Any) -> str:
    state = {"model": {"type": "BPE", "ignore_merges": whole}, "normalizer": None}
    pre: dict[str, Any] = {"type": "Sequence", "pretokenizers": list(steps)} if len(steps) > 1 else steps[0]
    return vocabulary.split_of(state | {"pre_tokenizer": pre} | changes, "run")


def by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def test_llama_cpps_name_for_a_split_is_found_by_what_it_does() -> None:
    assert split(BYTES) == "gpt-2"
    assert split({"type": "Digits", "individual_digits": True}, BYTES) == "smollm"
    assert split(by(LLAMA3), MERGED, whole=True) == "llama-bpe"
    assert split(by(LLAMA3.replace("{1,3}", "")), MERGED, normalizer={"type": "NFC"}) == "qwen2"
    for steps in ([by(".+"), MERGED], [by(LLAMA3), BYTES], [{"type": "Digits", "individual_digits": False}, BYTES]):
        with pytest.raises(HandoffError, match="splits text in a way that is not known"):
            split(*steps)
    with pytest.raises(HandoffError, match="splits text in a way that is not known"):
        split(BYTES, normalizer={"type": "Lowercase"})
    with pytest.raises(HandoffError, match="only byte-level BPE"):
        split({"type": "Metaspace"})


def with_stops(origin: ModelToExport, *tokens: int) -> ModelToExport:
    from dataclasses import replace

    return replace(origin, chat=replace(origin.chat, stop_ids=(origin.chat.end_id, *tokens)))


def test_an_end_token_that_a_file_cannot_name_is_an_error(origin: ModelToExport) -> None:
    assert vocabulary.read_vocabulary(with_stops(origin, 0, 7), 50000).special["eom"] == 7
    assert vocabulary.read_vocabulary(with_stops(origin, 0, 7), 50000).tokens[-1] == "[PAD49999]"
    with pytest.raises(HandoffError, match=r"llama\.cpp would not stop at .*: use --to ollama"):
        vocabulary.read_vocabulary(with_stops(origin, 5, 6, 7), 50000)
    assert ollama.modelfile_of(with_stops(origin, 5, 6, 7), "m").count("PARAMETER stop") == 4


# --- Go's templates


def with_template(origin: ModelToExport, template: str) -> ModelToExport:
    from dataclasses import replace

    return ModelToExport(origin.source, replace(origin.chat), template)


LLAMA_3 = (
    "{{ '<|im_start|>' }}{% for m in messages %}[{{ m.role }}]\n\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)


def test_templates_of_one_text_a_role_are_derived(origin: ModelToExport) -> None:
    template = ollama.go_template_of(with_template(origin, LLAMA_3))
    assert render_go(
        template, CHAT[:2]
    ) == "<|im_start|>[system]\n\nBe brief.<|im_end|>[user]\n\nWhy are\n my leaves pale?" + (
        "<|im_end|>[assistant]\n\n"
    )
    no_system = LLAMA_3.replace(
        "[{{", "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{a{b{{ '{{' }}[{{"
    )
    derived = ollama.go_template_of(with_template(origin, no_system))
    assert '{{ "{{" }}' in derived
    assert '"system"' not in derived


@pytest.mark.parametrize(
    "template",
    [
        LLAMA_3.replace("[{{", "{{ loop.index }}[{{"),  # a number before each turn
        LLAMA_3.replace("m.content", "m.content | upper"),
        LLAMA_3.replace("m.content", "messages[-1].content"),
    ],
)
def test_templates_that_do_more_are_refused(origin: ModelToExport, template: str) -> None:
    with pytest.raises(HandoffError, match=r"cannot be put into Ollama's form .*: use --to gguf with llama\.cpp"):
        ollama.go_template_of(with_template(origin, template))


def test_go_templates_are_read_as_go_reads_them() -> None:
    """By hand, from the package's documentation."""
    ask = [{"role": "user", "content": "hi"}]
    assert render_go('{{ if not .System }}a{{ else }}b{{ end }}{{ "{{" }} }}', ask) == "a{{ }}"
    chain = '{{ if eq .Role "x" "y" }}1{{ else if ne .Role "user" }}2{{ else }}3{{ end }}'
    assert render_go(f"{{{{ range $i, $m := .Messages }}}}{chain}{{{{ end }}}}", ask) == "3"
    assert render_go("{{ len .Messages }}{{ len (slice .Messages 1) }}", ask) == "10"
    with pytest.raises(ValueError, match="without its beginning"):
        render_go("{{ end }}", ask)
    with pytest.raises(ValueError, match="no such function or variable: trim"):
        render_go("{{ trim .System }}", ask)
