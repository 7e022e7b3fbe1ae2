"""Features for data sets: taken from what is kept, computed where they are missing, put where there is room."""

import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptclf.data.batches import TokenRows
from gptclf.features import store as stores
from gptclf.features.estimate import prefix_seconds
from gptclf.features.frozen_prefix import Cut, compute_missing, draws_dropout, is_usual, missing_rows, reusable_cut
from gptclf.features.rows import FeatureSet
from gptclf.features.store import FeatureStore, text_key
from gptclf.gpt2.arithmetic import product_dtype
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.stages import Suffix, frozen_depth
from gptclf.progress import Meter, format_bytes, format_seconds

logger = logging.getLogger(__name__)


@contextmanager
def reused(
    model: GPT2,
    datasets: Sequence[TokenRows],
    *,
    precision: str,
    cache_dir: str | Path | None = None,
    cache_limit: float = stores.DISK_LIMIT,
    spill: bool = True,
    progress: bool = False,
) -> Iterator[tuple[Suffix, list[FeatureSet]] | None]:
    """The end of a model after its frozen prefix, and each data set's features for it; None to compute plainly.

    Features that are missing are computed, after saying how long that takes and what it keeps. They stay in memory
    where there is room, else in `cache_dir`, else in a temporary folder that the end of the block deletes.

    Args:
        model: A classifier or language model.
        datasets: Rows that fit its context.
        precision: "auto", "float32" or "bfloat16".
        cache_dir: A folder to keep features in.
        cache_limit: Bytes that all features in that folder may take.
        spill: Whether features that memory has no room for may go to a temporary folder.
        progress: Say on standard error what is done.
    """
    cut = frozen_cut(model, precision)
    if cut is None:
        if frozen_depth(model) >= 2 and draws_dropout(model):
            logger.warning("dropout is %g, so the frozen part is computed anew at every step", model.config.drop_rate)
        elif frozen_depth(model) >= 2 and not is_usual(model):
            logger.warning(
                "a module or a hook that is not gptclf's may change anything: the frozen part is computed anew"
            )
        yield None
        return
    rows = [ids for dataset in datasets for ids in dataset.rows()]
    with ExitStack() as ending:
        store = _store_with_room(cut, rows, cache_dir, cache_limit, ending if spill else None)
        if store is None:
            yield None
            return
        missing = missing_rows(cut, rows, store)
        if missing:
            tokens = sum(len(rows[i]) for i in missing)
            work = tokens * cut.n_blocks
            if progress:
                print(_announcement(cut, rows, missing, store), file=sys.stderr)
            with Meter(work, "frozen part", unit="tok", enabled=progress) as meter:
                compute_missing(cut, rows, missing, store, meter.update)
        width = model.config.emb_dim
        places = [store[text_key(ids)] for ids in rows]
        ends = np.cumsum([len(dataset) for dataset in datasets]).tolist()
        parts = [places[end - len(dataset) : end] for dataset, end in zip(datasets, ends, strict=True)]
        found = [FeatureSet(dataset, part, width) for dataset, part in zip(datasets, parts, strict=True)]
        yield Suffix(model, cut.depth), found


def kept(
    model: GPT2, dataset: TokenRows, *, precision: str, cache_dir: str | Path | None = None
) -> tuple[Suffix, FeatureSet] | None:
    """The end of a model and a data set's features, the missing ones computed if there is room; else None."""
    if frozen_cut(model, precision) is None:
        return None
    try:
        with reused(model, [dataset], precision=precision, cache_dir=cache_dir, spill=False) as found:
            return None if found is None else (found[0], found[1][0])
    except OSError as error:
        logger.warning("computed without keeping: %s", error)
        return None


def frozen_cut(model: GPT2, precision: str) -> Cut | None:
    """The frozen prefix of a model in the arithmetic that `precision` means for it, or None where it is not reused."""
    # A property of the run, not of how many texts happen to be missing.
    return reusable_cut(model, product_dtype(precision, model, sys.maxsize))


def store_in_use(cut: Cut) -> FeatureStore | None:
    """What this process's memory holds of a prefix."""
    return stores.peek(cut.identity())


def _store_with_room(
    cut: Cut,
    rows: Sequence[NDArray[np.int32]],
    cache_dir: str | Path | None,
    cache_limit: float,
    ending: ExitStack | None,
) -> FeatureStore | None:
    """A store that can take the features of the rows that it does not have yet."""
    identity = cut.identity()

    def needed(store: FeatureStore | None) -> int:
        lengths = np.array([len(rows[i]) for i in missing_rows(cut, rows, store)], dtype=np.int64)
        return cut.nbytes(lengths)

    if cache_dir is not None:
        return stores.on_disk(identity, Path(cache_dir), needed, cache_limit)
    store = stores.in_memory(identity, needed, renew=ending is not None)
    if store is not None or ending is None:
        return store
    folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="gptclf-")))
    store = stores.on_disk(identity, folder, needed, float("inf"))
    if store is not None:
        logger.warning(
            "features of %d texts take %s, more than the %s of memory that they may: they go to %s until this run "
            "ends. Name cache_dir= to keep them",
            len(rows),
            format_bytes(needed(None)),
            format_bytes(stores.memory_allowed()),
            folder,
        )
    else:
        logger.warning("there is no room for the features, so the frozen part is computed anew at every step")
    return store


def _announcement(cut: Cut, rows: Sequence[NDArray[np.int32]], missing: Sequence[int], store: FeatureStore) -> str:
    lengths = np.array([len(rows[i]) for i in missing], dtype=np.int64)
    tokens = int(lengths.sum())
    where = "in memory" if store.folder is None else f"in {store.folder}"
    kind = str(cut.dtype).removeprefix("torch.")
    return (
        f"frozen part: {cut.n_blocks} blocks over {tokens:,} tokens in {kind}; {len(missing):,} of {len(rows):,} "
        f"texts, the others are repeated or kept; about {format_seconds(prefix_seconds(cut, tokens))}, "
        f"{format_bytes(cut.nbytes(lengths))} {where}"
    )
