"""Files on disk: atomic writes, JSON, safetensors, PyTorch and TensorFlow formats."""
