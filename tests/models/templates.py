"""Real chat templates, each with a small tokenizer that has its family's special tokens.

Most are the files that TRL ships; the folder beside this file has those of SmolLM2, Zephyr, OLMo 2 and Mistral.
End-of-sequence and stop tokens are those of each family's tokenizer and `generation_config.json`, which often differ.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Template:
    """A chat template and the tokens of its family."""

    name: str
    file: str
    """in TRL's folder of chat templates, or in the one beside this file"""
    eos: str
    """the tokenizer's own end-of-sequence token"""
    stops: tuple[str, ...]
    """`eos_token_id` of the family's generation_config.json"""
    writes: str
    """what the assistant writes after the generation prompt, `{}` being the answer"""
    special: tuple[str, ...] = ()
    """further special tokens"""
    added: tuple[str, ...] = ()
    """tokens that decoding keeps"""
    bos: str | None = None
    pad: str | None = None
    then: str = "\n"
    """the text with which a model continues if it is not stopped there"""
    parts: bool = False
    """reads a message's content as a list of parts alone"""
    arguments: tuple[tuple[str, bool], ...] = ()
    """given to the template"""

    @property
    def text(self) -> str:
        """The Jinja source."""
        import trl

        folders = (Path(__file__).parent, Path(trl.__file__).parent)
        [file] = [found for folder in folders if (found := folder / "chat_templates" / f"{self.file}.jinja").is_file()]
        return file.read_text()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A byte-level BPE of a few hundred words, with this family's tokens."""
        from tokenizers import AddedToken, Tokenizer
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer.from_str(_words())
        named = [token for token in (self.bos, self.eos, self.pad) if token]
        special = dict.fromkeys([*named, *self.stops, *self.special])
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in self.added])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=self.bos,
            eos_token=self.eos,
            pad_token=self.pad,
            clean_up_tokenization_spaces=False,
        )
        tokenizer.chat_template = self.text
        return tokenizer


IM = ("<|im_start|>", "<|im_end|>")
CALLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
THINK = ("<think>", "</think>")
QWEN = {
    "eos": "<|im_end|>",
    "pad": "<|endoftext|>",
    "stops": ("<|im_end|>", "<|endoftext|>"),
    "special": ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "then": "\n<|im_start|>user\n",
}
QWEN3 = {**QWEN, "added": (*THINK, *CALLS), "writes": "<think>\n\n</think>\n\n{}<|im_end|>"}
LLAMA3 = {
    "bos": "<|begin_of_text|>",
    "eos": "<|eot_id|>",
    "stops": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    "special": ("<|reserved_special_token_0|>", "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
    "writes": "{}<|eot_id|>",
    "then": "<|start_header_id|>user<|end_header_id|>\n\n",
}
GEMMA = {
    "bos": "<bos>",
    "eos": "<eos>",
    "pad": "<pad>",
    "stops": ("<eos>", "<end_of_turn>"),
    "special": ("<start_of_turn>", "<unk>"),
    "writes": "{}<end_of_turn>",
    "then": "\n<start_of_turn>user\n",
}
GEMMA4 = {
    "bos": "<bos>",
    "eos": "<eos>",
    "pad": "<pad>",
    "stops": ("<eos>", "<turn|>", "<|tool_response>"),
    "special": (
        "<|turn>",
        "<|channel>",
        "<channel|>",
        "<|think|>",
        "<|tool>",
        "<tool|>",
        "<|tool_call>",
        "<tool_call|>",
        "<tool_response|>",
        '<|"|>',
    ),
    "writes": "{}<turn|>",
    "then": "\n<|turn>user\n",
}
PHI3 = {
    "bos": "<s>",
    "eos": "<|endoftext|>",
    "pad": "<|endoftext|>",
    "stops": ("<|endoftext|>", "<|assistant|>", "<|end|>"),
    "special": ("<unk>", "<|user|>", "<|system|>"),
    "writes": "{}<|end|>",
    "then": "\n<|user|>\n",
}
COHERE = {
    "bos": "<BOS_TOKEN>",
    "eos": "<|END_OF_TURN_TOKEN|>",
    "pad": "<PAD>",
    "stops": ("<|END_OF_TURN_TOKEN|>",),
    "special": ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
    "writes": "{}<|END_OF_TURN_TOKEN|>",
    "then": "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
}
DEEPSEEK = {
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "pad": "<｜▁pad▁｜>",
    "stops": ("<｜end▁of▁sentence｜>",),
    "special": ("<｜User｜>", "<｜Assistant｜>"),
    "added": (
        *THINK,
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁outputs▁begin｜>",
        "<｜tool▁outputs▁end｜>",
        "<｜tool▁output▁begin｜>",
        "<｜tool▁output▁end｜>",
    ),
    "writes": "{}<｜end▁of▁sentence｜>",
    "then": "<｜User｜>",
}
GPT_OSS = {
    "bos": "<|startoftext|>",
    "eos": "<|return|>",
    "pad": "<|endoftext|>",
    "stops": ("<|return|>", "<|endoftext|>", "<|call|>"),
    "special": ("<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|constrain|>"),
    "writes": "<|channel|>final<|message|>{}<|return|>",
    "then": "<|start|>user<|message|>",
}
GLM = {
    "eos": "<|endoftext|>",
    "pad": "<|endoftext|>",
    "stops": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "special": ("[MASK]", "[gMASK]", "<sop>", "<|system|>", "<|assistant|>"),
    "added": (*THINK, *CALLS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    "writes": "\n<think></think>\n{}<|endoftext|>",  # its template writes no end: the next turn begins where one stops
    "then": "<|user|>\n",
}
LFM2 = {
    "bos": "<|startoftext|>",
    "eos": "<|im_end|>",
    "pad": "<|pad|>",
    "stops": ("<|im_end|>",),
    "special": (
        "<|im_start|>",
        "<|endoftext|>",
        "<|tool_list_start|>",
        "<|tool_list_end|>",
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        "<|tool_response_start|>",
        "<|tool_response_end|>",
    ),
    "writes": "{}<|im_end|>",
    "then": "\n<|im_start|>user\n",
}
NEMOTRON = {
    "bos": "<s>",
    "eos": "<|im_end|>",
    "pad": "<unk>",
    "stops": ("</s>", "<|im_end|>"),
    "special": ("<|im_start|>",),
    "added": (*THINK, *CALLS),
    "then": "\n<|im_start|>user\n",
}
LLAVA = {
    "bos": "<s>",
    "eos": "</s>",
    "pad": "<pad>",
    "stops": ("</s>",),
    "special": ("<unk>", "<image>"),
    "writes": " {}</s>",
    "then": " [INST] ",
    "parts": True,
}

TEMPLATES: dict[str, Template] = {
    made.name: made
    for made in [
        Template(
            "smollm2", "smollm2", "<|im_end|>", ("<|im_end|>",), "{}<|im_end|>", ("<|endoftext|>", *IM), bos=IM[0]
        ),
        Template("zephyr", "zephyr", "<|endoftext|>", ("<|endoftext|>",), "{}<|endoftext|>", pad="<|padding|>"),
        Template(
            "olmo", "olmo", "<|endoftext|>", ("<|endoftext|>",), "{}<|endoftext|>", bos="<|endoftext|>", pad="<|pad|>"
        ),
        Template(
            "mistral", "mistral", "</s>", ("</s>",), " {}</s>", ("<unk>", "[INST]", "[/INST]"), bos="<s>", then="[INST]"
        ),
        Template("llama3", "llama3", **{**LLAMA3, "stops": ("<|end_of_text|>", "<|eot_id|>")}),
        Template("llama3_1", "llama3_1", **LLAMA3),
        Template("llama3_2", "llama3_2", **LLAMA3),
        Template("qwen2_5", "qwen2_5", **QWEN, writes="{}<|im_end|>", added=CALLS),
        Template(
            "qwen2_5_base",
            "qwen2_5",
            "<|endoftext|>",
            ("<|endoftext|>",),
            "{}<|im_end|>",
            IM,
            CALLS,
            pad="<|endoftext|>",
            then="\n<|im_start|>user\n",
        ),
        Template("qwen2_5_vl", "qwen2_5_vl", **QWEN, writes="{}<|im_end|>"),
        Template("qwen3", "qwen3", **QWEN3),
        Template("qwen3_instruct_2507", "qwen3_instruct_2507", **{**QWEN3, "writes": "{}<|im_end|>"}),
        Template("qwen3_vl", "qwen3_vl", **{**QWEN3, "writes": "{}<|im_end|>"}),
        Template("qwen3_5_think", "qwen3_5_think", **{**QWEN3, "writes": "\n</think>\n\n{}<|im_end|>"}),
        Template("qwen3_5_nothink", "qwen3_5_nothink", **{**QWEN3, "writes": "{}<|im_end|>"}),
        Template("qwen3_6", "qwen3_6", **{**QWEN3, "writes": "\n</think>\n\n{}<|im_end|>"}),
        Template("qwen3_8", "qwen3_8", **{**QWEN3, "writes": "\n</think>\n\n{}<|im_end|>"}),
        Template("gemma", "gemma", **GEMMA),
        Template("gemma3", "gemma3", **{**GEMMA, "special": ("<start_of_turn>", "<unk>", "<start_of_image>")}),
        Template("gemma4_v2", "gemma4_v2", **GEMMA4),
        Template("gemma4_v5", "gemma4_v5", **GEMMA4),
        Template("phi3", "phi3", **PHI3),
        Template("phi3_5", "phi3_5", **PHI3),
        Template("cohere", "cohere", **COHERE),
        Template(
            "cohere2",
            "cohere2",
            **{
                **COHERE,
                "special": (*COHERE["special"], "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
                "writes": "{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
            },
        ),
        Template("deepseekv3", "deepseekv3", **DEEPSEEK),
        Template("deepseek_r1_distill", "deepseek_r1_distill", **DEEPSEEK),
        Template("gptoss", "gptoss", **GPT_OSS),
        Template("glm4moe", "glm4moe", **GLM),
        Template("lfm2", "lfm2", **LFM2),
        Template("lfm2_v2", "lfm2_v2", **LFM2),
        Template("lfm2_2_5", "lfm2_2_5", **LFM2, added=THINK),
        Template("nemotron_3_nano", "nemotron_3_nano", **NEMOTRON, writes="</think>{}<|im_end|>"),
        Template("nemotron_3_super", "nemotron_3_super", **NEMOTRON, writes="</think>{}<|im_end|>"),
        Template("nemotron_3_ultra", "nemotron_3_ultra", **NEMOTRON, writes="</think>{}<|im_end|>"),
        *(
            Template(
                f"{file} (enable_thinking: false)",
                file,
                **NEMOTRON,
                writes="{}<|im_end|>",
                arguments=(("enable_thinking", False),),
            )
            for file in ("nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra")
        ),
        Template(
            "qwen3 (enable_thinking: false)",
            "qwen3",
            **{**QWEN3, "writes": "{}<|im_end|>"},
            arguments=(("enable_thinking", False),),
        ),
        Template(
            "muse_glimmer",
            "muse_glimmer",
            "<|eot|>",
            ("<|eot|>",),
            " to=user<|message|>{}<|eot|>",
            ("<|start|>", "<|message|>", "<|eom|>"),
            bos="<|begin_of_text|>",
            pad="<|pad|>",
            then="<|start|>user<|message|>",
        ),
        Template("gemma_training", "gemma_training", **GEMMA),
        Template("llama3_training", "llama3_training", **{**LLAMA3, "stops": ("<|end_of_text|>", "<|eot_id|>")}),
        Template("phi3_training", "phi3_training", **PHI3),
        Template("qwen3_training", "qwen3_training", **QWEN3),
        Template("gptoss_training", "gptoss_training", **GPT_OSS),
        Template("lfm2_training", "lfm2_training", **LFM2),
        Template("llava_next", "llava_next", **LLAVA),
        Template(
            "idefics3",
            "idefics3",
            "<|end_of_text|>",
            ("<|end_of_text|>", "<end_of_utterance>"),
            " {}<end_of_utterance>",
            ("<image>", "<|reserved_special_token_0|>"),
            bos="<|begin_of_text|>",
            then="\nUser: ",
            parts=True,
        ),
        Template(
            "smolvlm",
            "smolvlm",
            "<end_of_utterance>",
            ("<end_of_utterance>",),
            " {}<end_of_utterance>",
            ("<|endoftext|>", "<|im_end|>", "<image>"),
            bos="<|im_start|>",
            pad="<|im_end|>",
            then="\nUser: ",
            parts=True,
        ),
    ]
}


@functools.cache
def _words() -> str:
    """The BPE without any special token, as JSON."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS * 4, TEMPLATES["cohere2"].text], trainer)  # its preamble is long
    return str(tokenizer.to_str())


SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen cut text into words."""
CORPUS = [
    "How often do I feed basil? Feed it daily. And mint? Once a week. Be brief. Why are the leaves of my tomato pale?",
    "It wants more light. Where do I put the lamp? Put it a hand above the leaves. Basil drinks a lot.",
    "You are a helpful assistant. user assistant system model final analysis commentary tool functions feeding_plan crop",
    "\n\nUser: What does kale need at night?\nAssistant: Keep it dark for eight hours.\n\n",
]
