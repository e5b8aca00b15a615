"""One look with rules at a model, and rule sets that are nothing but the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pellucid import Adapter, Gradient, Look, Rule, RuleSet, Seen
from pellucid.engine.drive import Drive
from pellucid.engine.guard import guarded
from pellucid.engine.inputs import make_sample
from pellucid.engine.passes import Engine
from pellucid.engine.planner import Planner
from pellucid.protocol import as_passes


@pytest.fixture
def look() -> Callable[..., Seen]:
    """Looks at a model; `reference` and `at` are functions of the sample."""

    def run(
        model: nn.Module | Adapter,
        inputs: Any,
        rules: RuleSet | None = None,
        *,
        target: Any = None,
        batch_size: int | str = "auto",
        at: Callable[[Any], Any] = lambda sample: sample,
        reference: Callable[[Any], Any] | None = None,
        **asks: Any,
    ) -> Seen:
        adapter = model if isinstance(model, Adapter) else Adapter(model)
        asks = {"gradients": ["input"], **asks}

        def passes(sample: Any) -> Any:
            compared = None if reference is None else reference(sample)
            return (yield Look(at=at(sample), rules=rules, reference=compared, **asks))

        with guarded(adapter.module, 0):
            engine = Engine(adapter)
            sample, _ = make_sample(engine, inputs, target, 0)
            outcome = Planner(engine, batch_size, None, sample).run({"one": Drive(as_passes(passes(sample)))})
        if outcome.errors:
            raise outcome.errors["one"]
        seen: Seen = outcome.results["one"]
        return seen

    return run


@pytest.fixture
def plain() -> RuleSet:
    """The gradient, by one rule for everything: nothing is rewritten."""
    return RuleSet("plain", {"*": Gradient()})


@pytest.fixture
def rewritten() -> RuleSet:
    """The gradient, with everything written out that has an expansion, and BatchNorms folded."""
    table: dict[str, Rule] = {
        key: Gradient() for key in ("exp", "reciprocal", "rsqrt", "relu", "sigmoid", "tanh", "erf")
    }
    table |= {key: Gradient() for key in ("pow", "sqrt", "log", "hardsigmoid", "softplus", "product")}
    return RuleSet("rewritten", table, canonizers=("batch_norm",))


@pytest.fixture
def images() -> Callable[..., torch.Tensor]:
    """Makes images in float64, always the same."""

    def make(count: int = 2, size: int = 64) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)

    return make
