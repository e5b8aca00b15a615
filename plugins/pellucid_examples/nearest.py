"""The nearest of many examples: as they stream by, or found by an approximate index that is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid import Blocks, Unavailable

WIDTH = 256
"""Longer vectors are projected to so many numbers before they are indexed."""
LINKS, BREADTH = 16, 80
"""How many neighbours each vector has in the index's graph, and how many candidates are held as it is built."""


class Nearest:
    """The k nearest of what has streamed by, the nearest first and of equals the first.

    Args:
        queries: how many lines there are.
        k: how many of each are kept.
        like: a tensor of the type and at the place of the distances.
    """

    def __init__(self, queries: int, k: int, like: Tensor) -> None:
        self.k = k
        self.distances = like.new_empty(queries, 0)
        self.indices = torch.empty(queries, 0, dtype=torch.long, device=like.device)

    def add(self, places: Tensor, distances: Tensor) -> None:
        """Takes distances (queries, n) of examples at places (n,), which come later than those before."""
        # Sorting is stable, and what came first stands first.
        order = torch.cat([self.distances, distances], dim=1).sort(dim=1, stable=True)
        self.distances = order.values[:, : self.k]
        both = torch.cat([self.indices, places.to(self.indices).expand(len(distances), -1)], dim=1)
        self.indices = both.gather(1, order.indices[:, : self.k])


def sketched(vectors: Tensor) -> Tensor:
    """Vectors (n, d) in single precision, projected to `WIDTH` numbers where they are longer.

    A random projection keeps distances but for a few per cent; it is the same for all vectors of a length.
    """
    if vectors.shape[1] <= WIDTH:
        return vectors.float()
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(vectors.shape[1], WIDTH, generator=generator) / WIDTH**0.5
    made: Tensor = vectors.float() @ projection.to(vectors.device)
    return made


@dataclass(frozen=True, eq=False)
class Index:
    """A graph of near neighbours (HNSW), on which those of a query are found in about logarithmic time.

    Malkov and Yashunin, 2018. It is built by one thread, so that the same vectors always make the same graph.

    Attributes:
        graph: faiss's.
        recall: the share of the true neighbours that it found when it was made.
    """

    graph: Any
    recall: float = math.nan

    @classmethod
    def of(cls, vectors: Tensor) -> Index:
        """The index of sketched vectors (n, w)."""
        faiss = _faiss()
        graph = faiss.IndexHNSWFlat(vectors.shape[1], LINKS)
        graph.hnsw.efConstruction = BREADTH
        with _threads(faiss, 1):
            graph.add(vectors.cpu().numpy())
        return cls(graph)

    @classmethod
    def kept(cls, blocks: Blocks, key: str) -> Index | None:
        """The index that was kept; None where there is none."""
        faiss, found = _faiss(), blocks.found(key)
        return None if found is None else cls(faiss.deserialize_index(found["graph"].numpy()), float(found["recall"]))

    def keep(self, blocks: Blocks, key: str) -> None:
        """Keeps the index, with its recall."""
        graph = torch.from_numpy(_faiss().serialize_index(self.graph))
        blocks.keep(key, {"graph": graph, "recall": torch.tensor(self.recall, dtype=torch.float64)})

    def candidates(self, queries: Tensor, count: int) -> Tensor:
        """The places (queries, count) of about the nearest, -1 where there are fewer."""
        self.graph.hnsw.efSearch = 2 * count
        _, found = self.graph.search(queries.cpu().numpy(), count)
        return torch.from_numpy(found)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise Unavailable(
            "an approximate index needs faiss: pip install 'pellucid[faiss]'; or give a greater exact_up_to"
        ) from error
    return faiss


@contextmanager
def _threads(faiss: Any, count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
