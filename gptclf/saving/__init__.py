"""Saving and loading: whole models, and LoRA adapters."""
