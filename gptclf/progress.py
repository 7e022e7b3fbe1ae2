"""Progress on standard error, and durations and sizes in words.

What is written here is a comfort: a missing console, a closed one, or one that cannot be written never ends the work.
"""

import sys
import time
from contextlib import suppress
from typing import Any, Self

# Seconds between two lines if there is no terminal to show a bar.
_EVERY = 10.0


def write_line(text: str) -> None:
    """Write a line to standard error if there is one that can be written."""
    # None, as under pythonw; an object with nothing but a write method; a closed file; a terminal that hung up.
    with suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class Meter:
    """Progress of work whose amount is known, with the estimated time left.

    Shows a bar if standard error is a terminal and tqdm is installed. Otherwise prints a line every ten seconds, so
    short work prints nothing.

    Args:
        total: The amount of work.
        what: A few words that say what is being done.
        unit: The unit of the amount.
        enabled: Whether to show anything.
        done: The amount that is done already.

    Example:
        >>> with Meter(3, "reading", enabled=False) as meter:
        ...     meter.update(3)
    """

    def __init__(self, total: float, what: str, *, unit: str = "", enabled: bool = True, done: float = 0.0) -> None:
        self.total, self.what, self.before, self.done = total, what, done, done
        self.enabled = enabled and total > 0
        self.start = self._said = time.perf_counter()
        self._bar: Any = None
        # A log gets lines, not a bar's carriage returns. Standard error may be missing, or closed.
        with suppress(AttributeError, ValueError, ImportError):
            if self.enabled and sys.stderr.isatty():
                from tqdm import tqdm

                self._bar = tqdm(total=total, desc=what, unit=unit, unit_scale=True, leave=False, initial=done)

    def update(self, amount: float, note: str = "") -> None:
        """Advance the meter by `amount`, and show a few words on the state of the work."""
        self.done += amount
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
            return
        now = time.perf_counter()
        if self.enabled and self.before < self.done < self.total and now - self._said >= _EVERY:
            self._said = now
            left = (now - self.start) * (self.total - self.done) / (self.done - self.before)
            note = f" ({note})" * bool(note)
            write_line(f"{self.what}: {100 * self.done / self.total:.0f} %, {format_seconds(left)} left{note}")

    def write(self, text: str) -> None:
        """Write a line, above the bar if there is one."""
        if self._bar is None:
            write_line(text)
        else:
            with suppress(OSError, ValueError):
                self._bar.write(text, file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
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
