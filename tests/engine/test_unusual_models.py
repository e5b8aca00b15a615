"""Models of unusual parts: sparse buffers, statistics of the batch, and an axis that is dropped for one example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pellucid


class Graph(nn.Module):
    """Mixes the inputs along the edges of a graph."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        edges = torch.rand(5, 5).round() + torch.eye(5)
        self.register_buffer("edges", edges.to_sparse() if sparse else edges)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh((self.edges @ x.T).T))


@pytest.mark.parametrize("technique", ["saliency", "lrp", "feature_ablation"])
@pytest.mark.parametrize("optimize", [False, True])
def test_a_sparse_buffer(technique: str, optimize: bool) -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    dense, sparse = (
        pellucid.explain(pellucid.adapt(Graph(which).eval(), optimize=optimize), x, technique, 1)
        for which in (False, True)
    )
    torch.testing.assert_close(sparse.values, dense.values)


def test_the_model_hash_tells_sparse_buffers_apart() -> None:
    x, model = torch.randn(3, 5), Graph(True).eval()
    first = pellucid.explain(model, x, "saliency", 1).meta.model_hash
    model.edges = 2 * model.edges
    assert pellucid.explain(model, x, "saliency", 1).meta.model_hash != first


def test_statistics_of_the_batch_are_noted(images: Any) -> None:
    def notes(norm: nn.Module) -> list[str]:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(400, 2)).eval()
        return [one for one in pellucid.explain(model, images(), "saliency", 1).meta.notes if "of the batch" in one]

    (note,) = notes(nn.BatchNorm2d(4, track_running_stats=False))
    assert note.startswith("'1' normalises by the statistics of the batch")
    assert not notes(nn.BatchNorm2d(4))
    assert not notes(nn.InstanceNorm2d(4))


def test_an_axis_that_is_dropped_for_one_example_is_named(images: Any) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.mean(dim=(2, 3)).squeeze())

    model = Dropping().eval()
    assert pellucid.explain(model, images(), "saliency", 1).values.shape == (3, 3, 12, 12)
    with pytest.raises(pellucid.ModelError, match="drops the axis of a single example, by `squeeze\\(\\)`"):
        pellucid.explain(model, images(1), "saliency", 1)
