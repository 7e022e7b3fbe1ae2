"""GPT-2's byte-level BPE: reading its files, finding the one that belongs to a model, text to ids and back."""
