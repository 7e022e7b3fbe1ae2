"""Bytes from elsewhere: HTTP, resumed downloads, Hugging Face's hub and cache."""
