"""Features for data sets: taken from the store, or computed and stored if there is room."""

import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptclf.data.batches import Rows, TokenRows
from gptclf.features import cache
from gptclf.features.frozen_prefix import (
    FrozenPrefix,
    NoPrefix,
    compute_missing,
    frozen_prefix,
    missing_rows,
    prefix_seconds,
)
from gptclf.features.rows import FeatureSet
from gptclf.features.store import FeatureStore, text_key
from gptclf.gpt2.arithmetic import arithmetic_for
from gptclf.gpt2.model import GPT2
from gptclf.progress import Meter, format_bytes, format_seconds, write_line

logger = logging.getLogger(__name__)


class Features(NamedTuple):
    """The inputs of a learner.

    Attributes:
        depth: Number of stages that are already computed: the rows are the inputs of `Learner(model, depth)`.
        rows: The features of each data set, or with depth 0 the data sets themselves.
    """

    depth: int
    rows: Sequence[Rows]


@contextmanager
def features_of(
    model: GPT2,
    datasets: Sequence[TokenRows],
    *,
    precision: str,
    cache_dir: Path | None = None,
    cache_limit: float = cache.DISK_LIMIT,
    spill: bool = True,
    progress: bool = False,
) -> Iterator[Features]:
    """Provide the features of each data set after the frozen prefix, or the data sets if nothing can be reused.

    Missing features are computed, after an estimate of the time and memory that this takes is shown. They are kept in
    `cache_dir` if it is given. Otherwise they are kept in memory if there is room, or in a temporary folder that is
    deleted at the end of the block. If nothing can be reused although blocks are frozen, the reason is logged.

    Args:
        model: A classifier or language model.
        datasets: Rows that fit its context.
        precision: "auto", "float32" or "bfloat16".
        cache_dir: A folder to keep features in.
        cache_limit: The most bytes that all features in that folder may take.
        spill: Whether features that do not fit in memory may go to a temporary folder.
        progress: Show progress on standard error.
    """
    prefix = prefix_of(model, precision)
    if isinstance(prefix, NoPrefix):
        if prefix.notable:
            logger.warning("%s", prefix.reason)
        yield Features(0, datasets)
        return
    rows, identity = [ids for dataset in datasets for ids in dataset.rows()], prefix.identity()
    with ExitStack() as ending:
        with cache.filling(identity):
            store = _store_with_room(prefix, identity, rows, cache_dir, cache_limit, ending if spill else None)
            if store is not None:
                _fill(store, prefix, rows, progress)
                stored = iter([store[text_key(ids)] for ids in rows])
        if store is None:
            yield Features(0, datasets)
            return
        width = model.config.emb_dim
        sets = [FeatureSet(its, [next(stored) for _ in range(len(its))], width, store) for its in datasets]
        yield Features(prefix.depth, sets)


def _fill(store: FeatureStore, prefix: FrozenPrefix, rows: Sequence[NDArray[np.int32]], progress: bool) -> None:
    """Compute the features that a store lacks."""
    if missing := missing_rows(rows, store):
        tokens = sum(len(rows[i]) for i in missing)
        if progress:
            write_line(_announcement(prefix, rows, missing, store))
        with Meter(tokens * prefix.n_blocks, "frozen part", unit="tok", enabled=progress) as meter:
            compute_missing(prefix, rows, missing, store, meter.update)


def kept_features(model: GPT2, dataset: TokenRows, *, precision: str, cache_dir: Path | None = None) -> Features:
    """Return a data set's features, computing missing ones, or the data set itself if there is no room for them."""
    try:
        if isinstance(prefix_of(model, precision), FrozenPrefix):
            with features_of(model, [dataset], precision=precision, cache_dir=cache_dir, spill=False) as features:
                return features
    except OSError as error:
        logger.warning("features are computed without being kept: %s", error)
    return Features(0, [dataset])


def prefix_of(model: GPT2, precision: str) -> FrozenPrefix | NoPrefix:
    """Return a model's frozen prefix in the arithmetic that `precision` gives, or the reason why there is none."""
    # The arithmetic must not depend on how many texts happen to be missing.
    return frozen_prefix(model, arithmetic_for(precision, model, sys.maxsize))


def _store_with_room(
    prefix: FrozenPrefix,
    identity: str,
    rows: Sequence[NDArray[np.int32]],
    cache_dir: Path | None,
    cache_limit: float,
    ending: ExitStack | None,
) -> FeatureStore | None:
    """Return a store with room for the missing features of the rows, or None."""

    def needed(store: FeatureStore | None) -> int:
        return prefix.nbytes(np.array([len(rows[i]) for i in missing_rows(rows, store)], dtype=np.int64))

    if cache_dir is not None:
        return cache.on_disk(identity, cache_dir, needed, cache_limit)
    store = cache.in_memory(identity, needed, renew=ending is not None)
    if store is not None or ending is None:
        return store
    folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="gptclf-")))
    store = cache.on_disk(identity, folder, needed, float("inf"))
    if store is not None:
        sizes = format_bytes(needed(None)), format_bytes(cache.memory_for_features())
        message = "features of %d texts take %s, more than the %s of memory that they may take; they are written to %s"
        logger.warning(f"{message} until this run ends. Name cache_dir= to keep them", len(rows), *sizes, folder)
    else:
        logger.warning("there is no room for features; the frozen part is recomputed at every step")
    return store


def _announcement(
    prefix: FrozenPrefix, rows: Sequence[NDArray[np.int32]], missing: Sequence[int], store: FeatureStore
) -> str:
    lengths = np.array([len(rows[i]) for i in missing], dtype=np.int64)
    tokens = int(lengths.sum())
    where = "in memory" if store.folder is None else f"in {store.folder}"
    return (
        f"frozen part: {prefix.n_blocks} blocks over {tokens:,} tokens in {prefix.arithmetic.name}; {len(missing):,} "
        f"of {len(rows):,} texts, the others are repeated or kept; about "
        f"{format_seconds(prefix_seconds(prefix, tokens))}, {format_bytes(prefix.nbytes(lengths))} {where}"
    )
