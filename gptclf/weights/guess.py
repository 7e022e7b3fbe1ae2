"""A guess at what somebody's weights are when they are not GPT-2's: from a configuration, from tensor or file names.

Only for messages. Nothing is loaded or refused by a guess.
"""

import re
from collections.abc import Collection
from typing import Any

# `model_type` of a Hugging Face config.json to the name people know.
_MODEL_TYPES = {
    "albert": "ALBERT",
    "bart": "BART",
    "bert": "BERT",
    "bloom": "BLOOM",
    "deberta": "DeBERTa",
    "deberta-v2": "DeBERTa",
    "distilbert": "DistilBERT",
    "electra": "ELECTRA",
    "falcon": "Falcon",
    "gemma": "Gemma",
    "gpt_bigcode": "GPT-BigCode (StarCoder)",
    "gpt_neo": "GPT-Neo",
    "gpt_neox": "GPT-NeoX (Pythia)",
    "gptj": "GPT-J",
    "llama": "Llama",
    "mistral": "Mistral",
    "modernbert": "ModernBERT",
    "mpnet": "MPNet",
    "openai-gpt": "GPT-1, the model before GPT-2",
    "opt": "OPT",
    "phi": "Phi",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "roberta": "RoBERTa",
    "t5": "T5",
    "xlm-roberta": "XLM-RoBERTa",
    "xlnet": "XLNet",
}

_LORA = "a LoRA adapter: load the model it was trained on, with the adapter merged into it (PEFT's merge_and_unload)"

# A piece that only this architecture's parameter names have, the most telling first.
_TENSORS = (
    (r"(^|\.)lora_[AB]\.", _LORA),
    (r"(^|\.)tokens_embed\.weight$", "GPT-1"),
    (r"^distilbert\.|(^|\.)attention\.q_lin\.", "DistilBERT"),
    (r"^albert\.|\.albert_layer_groups\.", "ALBERT"),
    (r"^electra\.|(^|\.)embeddings_project\.|^discriminator_predictions\.", "ELECTRA"),
    (r"^(xlm_)?roberta\.", "RoBERTa"),
    (r"^deberta\.|\.attention\.self\.(query_proj|in_proj)\.", "DeBERTa"),
    (r"^bert\.", "BERT"),
    (r"(^|\.)attention\.self\.query\.", "BERT's, RoBERTa's or ELECTRA"),
    (r"\.(SelfAttention|EncDecAttention)\.q\.", "T5"),
    (r"(^|\.)word_embeddings_layernorm\.", "BLOOM"),
    (r"(^|\.)layers\.\d+\.attention\.query_key_value\.", "GPT-NeoX"),
    (r"(^|\.)h\.\d+\.attn\.attention\.[kqv]_proj\.", "GPT-Neo"),
    (r"(^|\.)h\.\d+\.attn\.[kqv]_proj\.", "GPT-J"),
    (r"(^|\.)decoder\.layers\.\d+\.encoder_attn\.", "BART"),
    (r"(^|\.)decoder\.layers\.\d+\.self_attn\.", "OPT"),
    (r"(^|\.)layers\.\d+\.self_attn\.", "Llama's, Mistral's or Qwen"),
    (r"(^|\.)layers\.\d+\.attn\.Wqkv\.", "ModernBERT"),
    (r"(^|\.)encoder\.layers?\.\d+\.", "an encoder"),
)

# A file that only this kind of folder or repository has, the most telling first, and what to do about it.
_FILES = (
    (r"adapter_config\.json", f"This is {_LORA}"),
    (
        r"modules\.json",
        "This is a sentence-transformers folder: what gptclf could load is its transformer alone, "
        "if that is a GPT-2, from the folder below that has a config.json",
    ),
    (r".*\.gguf", "GGUF files hold quantized weights of llama.cpp, which gptclf does not read"),
    (r".*\.onnx", "ONNX files hold a computation and not weights by name, which gptclf does not read"),
    (
        r"(tf_model|.*\.weights)\.h5|.*\.keras|saved_model\.pb",
        "These are Keras' or TensorFlow's files; load them "
        "with an older transformers' from_pretrained(folder, from_tf=True) and save_pretrained as safetensors",
    ),
    (
        r"flax_model\.msgpack",
        "These are Flax's files; load them with an older transformers' "
        "from_pretrained(folder, from_flax=True) and save_pretrained as safetensors",
    ),
)


def guess_from_config(model_type: Any) -> str:
    """A sentence on what a `config.json` with this `model_type` describes; "" where it is not known.

    Example:
        >>> guess_from_config("roberta")
        'This is RoBERTa'
    """
    known = _MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    return f"This is {known}" if known else ""


def guess_from_tensors(names: Collection[str]) -> str:
    """A sentence on whose parameters have these names; "" where nothing is recognised.

    Example:
        >>> guess_from_tensors(["model.layers.0.self_attn.q_proj.weight"])
        "The names look like Llama's, Mistral's or Qwen's; gptclf loads GPT-2"
    """
    if any(name.startswith("trunk.blocks.") for name in names):
        return (
            "The names are those of gptclf's own state dict: load_state_dict it into such a GPT2; save_model keeps one"
        )
    for pattern, what in _TENSORS:
        if any(re.search(pattern, name) for name in names):
            return f"This is {_LORA}" if what is _LORA else f"The names look like {what}'s; gptclf loads GPT-2"
    heads = {
        "score.weight": "It holds a classifier; load it with load_model",
        "classifier.weight": "It holds a head that labels every token; gptclf labels whole texts",
        "qa_outputs.weight": "It holds a head that answers questions; gptclf labels whole texts",
        "multiple_choice_head.summary.weight": "It holds a second head for multiple choice (GPT2DoubleHeadsModel); "
        "load it with transformers' GPT2LMHeadModel and save that",
    }
    return next((sentence for head, sentence in heads.items() if head in names), "")


def guess_from_files(names: Collection[str]) -> str:
    """A sentence on what a folder or repository with these files is; "" where nothing is recognised.

    Example:
        >>> guess_from_files(["README.md", "flax_model.msgpack"])[:23]
        "These are Flax's files;"
    """
    for pattern, sentence in _FILES:
        if any(re.fullmatch(pattern, name) for name in names):
            return sentence
    return ""
