"""bitsandbytes' NF4 kernel, where it is installed (`pip install gptclf[quant]`)."""

import functools
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

logger = logging.getLogger(__name__)

_importing = threading.Lock()


@functools.cache
def bitsandbytes_kernel(device: torch.device) -> Any:
    """Return bitsandbytes' function that dequantises 4-bit codes on a device, or None if it is not installed."""
    with _importing:
        if importlib.util.find_spec("bitsandbytes") is None:
            return None
        try:
            with _quietly():
                importlib.import_module("bitsandbytes")
            kernel = torch.ops.bitsandbytes.dequantize_4bit
            kernel(
                torch.zeros(32, dtype=torch.uint8, device=device),
                torch.ones(1, dtype=torch.float32, device=device),
                64,
                "nf4",
                [64],
                torch.bfloat16,
            )
        except (ImportError, RuntimeError, TypeError, ValueError, AttributeError, LookupError, OSError) as error:
            # A library for another processor or another torch.
            logger.warning("bitsandbytes cannot be used (%s); NF4 is computed with torch, which is slower", error)
            return None
        return kernel


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the import of bitsandbytes from downloading a kernel, and from warning that it could not.

    On processors with bfloat16 products its import asks the package `kernels` for one on the hub.
    """
    absent: Any = object()
    known, log = sys.modules.get("kernels", absent), logging.getLogger("bitsandbytes.backends.cpu.ops")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    log.addFilter(_silence)
    try:
        yield
    finally:
        log.removeFilter(_silence)
        if known is absent:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = known


def _silence(record: logging.LogRecord) -> bool:
    return "kernels" not in record.getMessage()
