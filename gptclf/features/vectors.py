"""One vector per text, computed once and kept in this process's memory beside the features of frozen prefixes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gptclf.data.batches import TokenRows
from gptclf.features import cache
from gptclf.features.frozen_prefix import missing_rows
from gptclf.features.store import FeatureStore, text_key


def kept_vectors(identity: str, rows: TokenRows, width: int, compute: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """Return a vector (N, D) for each row: those in memory, and the others, which are kept if there is room.

    Args:
        identity: A digest of everything but the row that determines a vector, in hexadecimal.
        rows: Token ids.
        width: Numbers per vector (D).
        compute: Computes the vectors of the rows with these numbers.
    """
    texts = list(rows.rows())

    def needed(store: FeatureStore) -> int:
        return 4 * width * len(missing_rows(texts, store))

    with cache.filling(identity):
        store = cache.in_memory(identity, needed, renew=True)
        if store is None:
            return compute(range(len(texts)))
        if missing := missing_rows(texts, store):
            store.add([text_key(texts[i]) for i in missing], [1] * len(missing), compute(missing))
        return torch.stack([store[text_key(ids)].values[0] for ids in texts])
