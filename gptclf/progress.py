"""Progress on standard error, and durations and sizes in words."""

import sys
import time
from typing import Any, Self

# Seconds between two lines if there is no terminal to show a bar.
_EVERY = 10.0


class Meter:
    """Progress of work whose amount is known, with the estimated time left.

    Shows a bar if standard error is a terminal and tqdm is installed. Otherwise prints a line every ten seconds, so
    short work prints nothing.

    Args:
        total: The amount of work.
        what: A few words that say what is being done.
        unit: The unit of the amount.
        enabled: Whether to show anything.

    Example:
        >>> with Meter(3, "reading", enabled=False) as meter:
        ...     meter.update(3)
    """

    def __init__(self, total: float, what: str, *, unit: str = "", enabled: bool = True) -> None:
        self.total, self.what, self.done = total, what, 0.0
        self.enabled = enabled and total > 0
        self.start = self._said = time.perf_counter()
        self._bar: Any = None
        if self.enabled and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, desc=what, unit=unit, unit_scale=True, leave=False)

    def update(self, amount: float) -> None:
        """Advance the meter by `amount`."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(amount)
            return
        now = time.perf_counter()
        if self.enabled and self.done < self.total and now - self._said >= _EVERY:
            self._said = now
            left = (now - self.start) * (self.total - self.done) / self.done
            print(f"{self.what}: {100 * self.done / self.total:.0f} %, {format_seconds(left)} left", file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def format_seconds(seconds: float) -> str:
    """Return a duration in words, rounded to its two largest units.

    Example:
        >>> format_seconds(0.3), format_seconds(75), format_seconds(7300)
        ('1 s', '1 min 15 s', '2 h 1 min')
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_bytes(amount: float) -> str:
    """Return a size in MB or GB, at least 1 MB.

    Example:
        >>> format_bytes(140_400_000), format_bytes(2.1e9)
        ('140 MB', '2.1 GB')
    """
    return f"{amount / 1e9:.1f} GB" if amount >= 999.5e6 else f"{max(1, round(amount / 1e6))} MB"
