"""GPT-2's byte-level BPE: reading and writing its files, finding a model's tokenizer, text to ids and back."""
