"""What is known of signs is true, is not claimed where it need not be, and what is made again is never stale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pellucid
from pellucid import Gradient, Node, Rule, RuleSet

SEEN: list[tuple[Node, Tensor]] = []


@dataclass(frozen=True)
class Shares(Rule):
    """Each input's share of a linear function's result, and what it was told is noted."""

    multiple_of: ClassVar[Any] = "inputs"

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor]:
        SEEN.append((node, carried))
        parts = node.vjp(torch.where(node.output == 0, 0.0, carried / node.output))
        return [value * part for value, part in zip(node.inputs, parts, strict=True)]


@dataclass(frozen=True)
class Passes(Rule):
    """Hands on what comes."""

    needs = ""
    multiple_of: ClassVar[Any] = "carried"

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor]:
        return [carried]


@dataclass(frozen=True)
class Even(Shares):
    """Hands everything the same, also where the input is zero, and says nothing of it."""

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor]:
        return [torch.ones_like(value) for value in node.inputs]


@dataclass(frozen=True)
class Beyond(Passes):
    """Hands some to the inputs of the node before, where nobody could expect it."""

    def __call__(self, node: Node, carried: Tensor) -> Any:
        source = node.sources[0]
        assert source is not None
        return {node: [carried], source: [torch.ones_like(value) for value in source.inputs]}


TABLE = {"weighted": Shares(), "sum": Shares(), "product": Shares(), "pointwise": Passes(), "max": Gradient()}


class Net(nn.Module):
    """A bit of every block: linear bottlenecks, dense concatenation, residuals, gates and poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.expand, self.deep, self.project = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 8, 1)
        self.gate, self.dense, self.head = nn.Linear(8, 8), nn.Conv2d(8, 4, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        y = self.project(F.relu6(self.deep(F.pad(F.relu6(self.expand(x)), (1, 1, 1, 1)))))
        x = F.relu(x + y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None])
        x = torch.cat([x, F.gelu(self.dense(x))], 1)
        return self.head(F.avg_pool2d(x, 2).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    model = Net()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(tensor[0].numel(), 4) ** 0.5)
    return model.double().eval()


def images(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rules_of(table: dict[str, Rule], **options: Any) -> RuleSet:
    return RuleSet("signs", {**TABLE, **table}, carries="relevance", **options)


@pytest.mark.parametrize("canonizers", [(), ("batch_norm",)])
def test_what_is_known_of_signs_is_true(look, net, canonizers):
    SEEN.clear()
    look(net, images(), rules_of({}, canonizers=canonizers), target=1)
    assert len(SEEN) > 10
    for node, carried in SEEN:
        for known, value in zip(node.nonnegative, node.inputs, strict=True):
            assert not known or bool((value >= 0).all()), node
        assert not node.rectified or not bool(carried[node.output <= 0].any()), node
    in_front = {node.layer for node, _ in SEEN if node.rectified}
    behind = {node.layer for node, _ in SEEN if node.kind == "weighted" and all(node.nonnegative)}
    assert {"expand", "deep", "norm" if not canonizers else "stem"} <= in_front
    assert not in_front & {"project", "dense", "head"}
    assert behind == {"expand", "deep", "project", "dense"}


def test_a_rule_that_hands_to_zeros_is_believed_only_by_its_own_word(look, net):
    SEEN.clear()
    look(net, images(), rules_of({"layer:project": Even()}), target=1)
    assert Even.multiple_of == ""  # though it is made from one that promises
    assert "deep" not in {node.layer for node, _ in SEEN if node.rectified}
    assert "expand" in {node.layer for node, _ in SEEN if node.rectified}


def test_parts_for_other_nodes_take_back_what_was_known(look, net):
    SEEN.clear()
    rules = rules_of({"hardtanh": Beyond()})
    found = look(net, images(), rules, target=1).gradients["input"]
    begun = [place for place, (node, _) in enumerate(SEEN) if node.layer == "head"]
    assert len(begun) == 2  # the pass started anew
    assert any(node.rectified for node, _ in SEEN[: begun[1]])
    assert not any(node.rectified for node, _ in SEEN[begun[1] :])

    @dataclass(frozen=True)
    class Unsaid(Shares):
        def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor]:
            return super().__call__(node, carried)

    silent = rules | {key: Unsaid() for key in ("weighted", "sum", "product")}
    assert torch.equal(found, look(net, images(), silent, target=1).gradients["input"])


def test_gradients_carry_no_claims(look, net):
    SEEN.clear()
    look(net, images(), RuleSet("gradient", {"weighted": Shares(), "pointwise": Passes()}), target=1)
    assert SEEN
    assert not any(node.rectified for node, _ in SEEN)


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_gamma_box"])
def test_a_change_of_a_weight_by_its_data_is_seen_by_the_next_pass(net, composite):
    wide = nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 48, 3), nn.BatchNorm2d(48))
    model = nn.Sequential(wide, nn.ReLU(), nn.Flatten(), nn.Linear(48 * 16, 3)).double().eval()
    adapted, technique = pellucid.adapt(model), pellucid.create("lrp", composite=composite)
    before = pellucid.explain(adapted, images(), technique, target=0, progress=False).values
    for change in (lambda: wide[3].weight.data.mul_(-0.5), lambda: wide[1].running_var.data.mul_(9.0)):
        change()
        after = pellucid.explain(adapted, images(), technique, target=0, progress=False).values
        fresh = pellucid.explain(pellucid.adapt(model), images(), technique, target=0, progress=False).values
        assert torch.equal(after, fresh)
        assert not torch.allclose(after, before)
        before = after
