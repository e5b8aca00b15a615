"""Small models, techniques written as plain generators, and a planner to run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from pellucid import Adapter, Look, Mean, Moments
from pellucid.engine.drive import Drive, Outcome
from pellucid.engine.guard import guarded
from pellucid.engine.inputs import make_sample
from pellucid.engine.passes import Engine
from pellucid.engine.planner import Planner
from pellucid.protocol import as_passes


class Net(nn.Module):
    """A small network; counts its forward calls and the rows of each."""

    def __init__(self, *, inplace: bool = False, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU(inplace)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.relu2 = nn.ReLU(inplace)
        self.head = nn.Linear(8, classes)
        self.rows: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        x = self.pool(self.relu1(self.bn(self.conv1(x))))
        x = self.relu2(self.conv2(x))
        return self.head(x.mean(dim=(2, 3)))


@pytest.fixture
def net() -> Callable[..., Net]:
    """Makes the small network, in eval mode, always with the same weights."""

    def make(**options: Any) -> Net:
        torch.manual_seed(0)
        model = Net(**options).eval()
        model.bn.running_mean.normal_()
        model.bn.running_var.uniform_(0.5, 2)
        return model

    return make


@pytest.fixture
def images() -> Callable[..., torch.Tensor]:
    """Makes images, always the same."""

    def make(count: int = 3, size: int = 12, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)

    return make


class Techniques:
    """Techniques as plain generator functions of a sample."""

    @staticmethod
    def saliency(sample):
        seen = yield Look(at=sample, gradients=["input"])
        return seen.gradients["input"]

    @staticmethod
    def cam(layer="auto"):
        def passes(sample):
            seen = yield Look(at=sample, activations=[layer], gradients=[layer])
            maps, slopes = seen.maps(layer), seen.map_gradients(layer)
            return (maps * slopes.mean(dim=(2, 3), keepdim=True)).sum(dim=1).relu()

        return passes

    @staticmethod
    def layer_cam(layer="auto"):
        def passes(sample):
            seen = yield Look(at=sample, activations=[layer], gradients=[layer])
            return (seen.maps(layer) * seen.map_gradients(layer).relu()).sum(dim=1).relu()

        return passes

    @staticmethod
    def activations(*layers):
        def passes(sample):
            seen = yield Look(at=sample, activations=layers)
            return seen.activations

        return passes

    @staticmethod
    def gradients(*layers, **options):
        def passes(sample):
            seen = yield Look(at=sample, gradients=layers, **options)
            return seen.gradients

        return passes

    @staticmethod
    def integrated(steps=5):
        def passes(sample):
            alphas = (torch.arange(steps) + 0.5) / steps
            seen = yield Look(at=sample.along("zero", alphas), gradients=["input"], fold=Mean())
            return sample.inputs * seen.gradients["input"]

        return passes

    @staticmethod
    def smooth(n=4, fold=Moments):
        def passes(sample):
            seen = yield Look(at=sample.jittered(n, 0.1), gradients=["input"], fold=fold())
            return seen.gradients["input"], seen.spread and seen.spread["gradients"]["input"]

        return passes

    @staticmethod
    def scores(sample):
        return (yield Look(at=sample)).scores

    @staticmethod
    def outputs(sample):
        return (yield Look(at=sample, outputs=True)).outputs

    @staticmethod
    def look(**asks):
        """Returns all that was seen; `at` is a function of the sample."""
        at = asks.pop("at", lambda sample: sample)

        def passes(sample):
            return (yield Look(at=at(sample), **asks))

        return passes

    @staticmethod
    def fails(sample):
        yield Look(at=sample)
        raise ValueError("no luck")


@pytest.fixture
def t() -> type[Techniques]:
    return Techniques


@pytest.fixture
def planned() -> Callable[..., Outcome]:
    """Runs techniques, given as functions of the sample by name, on a model."""

    def run(
        model: nn.Module | Adapter,
        inputs: Any,
        techniques: Mapping[str, Any] | Callable[..., Any],
        target: Any = None,
        *,
        batch_size: int | str = "auto",
        seed: int = 0,
        uses: frozenset[str] | None = None,
    ) -> Any:
        adapter = model if isinstance(model, Adapter) else Adapter(model)
        many = techniques if isinstance(techniques, Mapping) else {"one": techniques}
        with guarded(adapter.module, seed):
            engine = Engine(adapter)
            sample, _ = make_sample(engine, inputs, target, seed)
            planner = Planner(engine, batch_size, None, sample)
            outcome = planner.run({name: Drive(as_passes(one(sample)), uses) for name, one in many.items()})
        if isinstance(techniques, Mapping):
            return outcome
        if outcome.errors:
            raise outcome.errors["one"]
        return outcome.results["one"]

    return run
