"""Outputs of an exported folder under transformers (and PEFT) alone: run as a script, without Tiebreak on its path.

    python -I tiebreak/export/alone.py < request.json

The request names the folder and the probe's token ids; the answer, one line of JSON on standard output, has the
log-probabilities or scores, the rendered conversations and the end tokens. Nothing here may import Tiebreak.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

STOPS_BY_TEXT = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
"""end tokens that llama.cpp knows by their text, whatever a file names"""


def main() -> None:
    """Answer the request on standard input."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = json.load(sys.stdin)
    if request.get("threads"):
        import torch

        torch.set_num_threads(request["threads"])
    answer = {"values": values(request), **conversations(request)}
    if any(name.partition(".")[0] == "tiebreak" for name in sys.modules):
        raise SystemExit("Tiebreak was imported")
    print(json.dumps(answer), file=replies, flush=True)


def values(request: dict[str, Any]) -> list[float]:
    """Log-probabilities of the probe's ids after the first, or a reward model's scores."""
    import torch

    model = load(request).eval()
    ids = torch.tensor([request["ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    if logits.ndim == 2:
        return [float(score) for score in logits[0]]
    logits = logits[:, -len(request["ids"]) :]  # after virtual tokens
    logps = torch.log_softmax(logits[0, :-1].float(), dim=-1)
    return [float(one) for one in logps.gather(-1, ids[0, 1:, None]).squeeze(-1)]


def load(request: dict[str, Any]) -> Any:
    """The model, by the class that its users call."""
    import torch
    import transformers

    folder, options = request["folder"], {"trust_remote_code": request["trust_remote_code"]}
    if request["file"]:
        config = transformers.AutoConfig.from_pretrained(folder, gguf_file=request["file"])
        # two things that llama.cpp reads, and transformers leaves out
        if hasattr(config, "head_dim"):
            config.head_dim = head_size(os.path.join(folder, request["file"]))
        if request["rope"]:
            config.rope_parameters = request["rope"]
        options = {"gguf_file": request["file"], "config": config, "dtype": torch.float32}
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    if not request["adapter"]:
        name = "AutoModelForSequenceClassification" if request["scores"] else "AutoModelForCausalLM"
        return getattr(transformers, name).from_pretrained(folder, **options)
    import peft

    dtype = getattr(torch, request["dtype"])
    if request["quantized"] == "int8":
        heads = ["lm_head", "score"]
        options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
    elif request["quantized"]:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=request["quantized"],
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=request["double_quantized"],
            llm_int8_skip_modules=["lm_head", "score"],
        )
    if not request["scores"]:
        return peft.AutoPeftModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as file:
        base = json.load(file)["base_model_name_or_path"]
    classifier = transformers.AutoModelForSequenceClassification
    model = classifier.from_pretrained(base, num_labels=request["scores"], dtype=dtype, **options)
    return peft.PeftModel.from_pretrained(model, folder)


def conversations(request: dict[str, Any]) -> dict[str, Any]:
    """Token ids of rendered conversations (None: the template refuses one), and what ends an answer."""
    import jinja2
    import transformers

    source = {"gguf_file": request["file"]} if request["file"] else {"trust_remote_code": request["trust_remote_code"]}
    tokenizer = transformers.AutoTokenizer.from_pretrained(request["folder"], **source)
    rendered: list[list[int] | None] = []
    for messages in request["conversations"]:
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            rendered.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        except (jinja2.TemplateError, TypeError, ValueError, KeyError):
            rendered.append(None)
    ends: Any = None
    if request["file"]:
        ends = ends_of_file(os.path.join(request["folder"], request["file"]))
    elif not request["scores"]:
        ends = transformers.GenerationConfig.from_pretrained(request["folder"]).eos_token_id
    return {"conversations": rendered, "ends": ends if isinstance(ends, list) else [ends]}


def head_size(path: str) -> int:
    """The size of an attention head."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    return int(fields[f"{fields['general.architecture'].contents()}.attention.key_length"].contents())


def ends_of_file(path: str) -> list[int]:
    """The tokens at which llama.cpp stops."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    named = [fields.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    tokens = fields["tokenizer.ggml.tokens"].contents()
    by_text = [number for number, token in enumerate(tokens) if token in STOPS_BY_TEXT]
    return [*(int(field.contents()) for field in named if field is not None), *by_text]


if __name__ == "__main__":
    main()
