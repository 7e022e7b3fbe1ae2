"""Bytes on disk: atomic writes, safetensors, PyTorch's and TensorFlow's files."""
