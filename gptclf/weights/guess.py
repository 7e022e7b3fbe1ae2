"""Guessing which model foreign weights belong to, from a configuration or from the names of tensors or files.

Guesses are only used in error messages, never to accept or refuse weights.
"""

import re
from collections.abc import Collection
from typing import Any

# Models whose `model_type` in a Hugging Face config.json is their common name in lower case, then the others.
_COMMON = (
    "ALBERT BART BERT BLOOM DeBERTa DistilBERT ELECTRA Falcon Gemma Llama Mistral ModernBERT MPNet OPT Phi Qwen2 Qwen3 "
    "RoBERTa T5 XLM-RoBERTa XLNet"
)
_MODEL_TYPES = {name.lower(): name for name in _COMMON.split()} | {
    "deberta-v2": "DeBERTa",
    "gpt_bigcode": "GPT-BigCode (StarCoder)",
    "gpt_neo": "GPT-Neo",
    "gpt_neox": "GPT-NeoX (Pythia)",
    "gptj": "GPT-J",
    "openai-gpt": "GPT-1, the model before GPT-2",
}

_LORA = "a LoRA adapter: put it on the model that it was trained on with load_adapter, or load both with load_model"

_STATE = "the state of a training run, which train(..., checkpoint_dir=, resume=True) continues"

# A pattern that occurs only in the parameter names of one architecture, the most specific first.
_TENSORS = (
    (r"(^|\.)lora_[AB]\.", _LORA),
    (r"^optimizer\.exp_avg", _STATE),
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

_CONVERT = (
    "files; load them with an older version of transformers, from_pretrained(folder, from_{}=True), and save them with "
    "save_pretrained as safetensors"
)

# A file name that occurs only in one kind of folder or repository, the most specific first, and what to do about it.
_FILES = (
    (r"adapter_config\.json", f"This is {_LORA}"),
    (
        r"modules\.json",
        "This is a sentence-transformers folder: gptclf can load only its transformer, if that is a GPT-2, "
        "from the subfolder that has a config.json",
    ),
    (r"checkpoint-\d+", "It holds checkpoints of transformers' Trainer: give one of its folders checkpoint-..."),
    (
        r"step-\d+\.safetensors",
        "It holds the states of a training run, which train(..., checkpoint_dir=, resume=True) continues; save_model "
        "writes what load_model reads",
    ),
    (
        r"(pytorch_)?model\.[\w-]+\.(safetensors|bin)",
        "The weights are a variant, such as fp16: rename the file to model.safetensors or pytorch_model.bin",
    ),
    (r".*\.gguf", "GGUF files hold quantized weights for llama.cpp, which gptclf does not read"),
    (r".*\.onnx", "ONNX files hold a computation graph, which gptclf does not read"),
    (r"(tf_model|.*\.weights)\.h5|.*\.keras|saved_model\.pb", f"These are Keras or TensorFlow {_CONVERT.format('tf')}"),
    (r"flax_model\.msgpack", f"These are Flax {_CONVERT.format('flax')}"),
)


def guess_from_config(model_type: Any) -> str:
    """Return a sentence about the model that a `config.json` with this `model_type` describes; "" if not known.

    Example:
        >>> guess_from_config("roberta")
        'This is RoBERTa'
    """
    known = _MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    return f"This is {known}" if known else ""


def guess_from_tensors(names: Collection[str]) -> str:
    """Return a sentence about the model whose parameters have these names; "" if nothing is recognised.

    Example:
        >>> guess_from_tensors(["model.layers.0.self_attn.q_proj.weight"])
        "The names look like Llama's, Mistral's or Qwen's; gptclf loads GPT-2"
    """
    if any(re.match(r"trunk\.(blocks|norm|embed)\.", name) for name in names):
        return (
            "The names are those of gptclf's own state dict, which has no shape, labels and tokenizer: build the same "
            "model, with load_gpt2 and add_classifier_head, and fill it with model.load_state_dict(torch.load(path)). "
            "save_model writes a folder that load_model reads"
        )
    for pattern, what in _TENSORS:
        if any(re.search(pattern, name) for name in names):
            return f"This is {what}" if what in (_LORA, _STATE) else f"The names look like {what}'s; gptclf loads GPT-2"
    heads = {
        "score.weight": "It holds a classifier; load it with load_model",
        "classifier.weight": "It holds a head that classifies every token; gptclf classifies whole texts",
        "qa_outputs.weight": "It holds a head that answers questions; gptclf classifies whole texts",
        "multiple_choice_head.summary.weight": "It holds a second head for multiple choice (GPT2DoubleHeadsModel); "
        "load it with transformers' GPT2LMHeadModel and save that",
    }
    return next((sentence for head, sentence in heads.items() if head in names), "")


def guess_from_files(names: Collection[str]) -> str:
    """Return a sentence about a folder or repository with these files; "" if nothing is recognised.

    Example:
        >>> guess_from_files(["README.md", "flax_model.msgpack"])[:21]
        'These are Flax files;'
    """
    for pattern, sentence in _FILES:
        if any(re.fullmatch(pattern, name) for name in names):
            return sentence
    return ""
