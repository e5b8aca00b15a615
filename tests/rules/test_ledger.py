"""The ledger, on a network small enough to follow by hand; and rule sets that are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import pellucid
from pellucid import Attribution, Explainer, Gradient, Look, Node, ParameterError, ProtocolError, Rule, RuleSet


@dataclass(frozen=True)
class Shares(Rule):
    """Each input's share of a linear function's result; the bias keeps its own."""

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor]:
        parts = node.vjp(torch.where(node.output == 0, 0.0, carried / node.output))
        return [value * part for value, part in zip(node.inputs, parts, strict=True)]


@dataclass(frozen=True)
class Passes(Rule):
    """Hands on what comes."""

    needs = ""

    def __call__(self, node: Node, carried: Tensor) -> Sequence[Tensor]:
        return [carried]


class Small(nn.Module):
    """y = 2 relu(x1 + x2) - relu(x1 - 1) + 3, times a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
            self.first.bias.copy_(torch.tensor([0.0, -1.0]))
            self.last.weight.copy_(torch.tensor([[2.0, -1.0]]))
            self.last.bias.fill_(3.0)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


X = torch.tensor([[3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
SHARES = RuleSet("shares", {"weighted": Shares(), "pointwise": Passes()}, carries="relevance")


def test_what_a_bias_keeps_is_lost_where_it_is(look):
    seen = look(Small().double(), X, SHARES, target=0)
    # At (3, 1): hidden (4, 2), score 2*4 - 2 + 3 = 9. The last bias keeps 3; of -2 at the second unit, which is
    # 3 - 1, the bias -1 keeps 1 and the input gets -3. At (1, 1): hidden (2, 0), score 7, of which 3 are the bias's.
    assert torch.allclose(seen.gradients["input"], torch.tensor([[6.0 - 3.0, 2.0], [2.0, 2.0]]).double())
    ledger = seen.ledger
    assert ledger.started.tolist() == [9.0, 7.0]
    assert ledger.arrived.tolist() == [5.0, 4.0]
    assert ledger.residual.tolist() == [4.0, 3.0]
    last, relu, first = [entry for entry in ledger.entries if entry.kind != "move"]
    assert (last.op, last.layer, last.rule, last.taken, last.given, last.lost) == ("addmm", "last", "Shares", 16, 10, 6)
    assert (relu.op, relu.rule, relu.taken, relu.given) == ("relu", "Passes", 10, 10)
    assert (first.layer, first.taken, first.given) == ("first", 10, 9)
    assert ledger.worst(1) == [last]
    assert ledger.nodes == len(ledger.entries)
    assert ledger.capture_seconds > 0
    check = ledger.check("conservation", 0.1)
    assert check.verdict == "fail"
    assert check.value == pytest.approx(4 / 9)
    assert "addmm of 'last'" in check.note


def test_nothing_is_lost_without_biases(look):
    model = Small().double()
    for part in (model.first, model.last):
        nn.init.zeros_(part.bias)
    seen = look(model, X, SHARES, target=0)
    assert seen.ledger.check("conservation", 1e-12).verdict == "pass"
    assert seen.ledger.check_ruled().verdict == "pass"


def test_operations_without_a_rule_are_named(look):
    seen = look(Small().double(), X, RuleSet("no pointwise", {"weighted": Shares()}, carries="relevance"), target=0)
    assert seen.ledger.unruled == {"relu": 1}
    check = seen.ledger.check_ruled()
    assert check.verdict == "fail"
    assert "relu x1" in check.note
    # It goes by its linearisation, which is right for a ReLU.
    assert torch.equal(seen.gradients["input"], look(Small().double(), X, SHARES, target=0).gradients["input"])


def test_a_reference_makes_gradients_complete_where_everything_is_linear_between(look):
    rules = RuleSet("compares", {"pointwise": Gradient()}, needs_reference=True)
    seen = look(Small().double(), X, rules, target=0, reference=lambda sample: sample.at(sample.inputs * 2))
    assert seen.scores.tolist() == [9.0, 7.0]
    assert seen.reference_scores.tolist() == [14.0, 10.0]
    # The last ReLU is not linear between hidden units 0 and 1 of the second example.
    assert seen.ledger.started.tolist() == [-5.0, -3.0]
    assert seen.ledger.arrived.tolist() == [-5.0, -4.0]
    assert seen.ledger.worst(1)[0].op == "relu"


def test_a_plain_gradient_has_no_content(look, plain):
    ledger = look(Small().double(), X, plain, target=0).ledger
    assert not ledger.metered
    assert ledger.check("conservation", 0.0).verdict == "info"
    assert {entry.taken for entry in ledger.entries} == {0.0}
    unmetered = RuleSet("shares", SHARES.table, carries="relevance", metered=False)
    assert not look(Small().double(), X, unmetered, target=0).ledger.metered


def test_the_batches_of_a_look_share_a_ledger(look):
    whole, split = (look(Small().double(), X, SHARES, target=0, batch_size=size).ledger for size in (2, 1))
    assert whole.started.tolist() == split.started.tolist()
    assert [entry.lost for entry in whole.entries] == [entry.lost for entry in split.entries]


def test_what_a_table_is_keyed_by(look):
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)).double()

    @dataclass(frozen=True)
    class Named(Gradient):
        name: str = ""

    keys = ["layer:1", "first", "last", "relu", "linear", "weighted", "*"]
    for missing in range(len(keys)):
        rules = RuleSet("keyed", {key: Gradient() for key in keys[missing:]})
        assert look(model, X, rules, target=0).ledger.unruled == {}
    by_layer = RuleSet(
        "by layer", {"layer:[12]": Passes(), "first": Shares(), "last": Gradient(), "weighted": Passes()}
    )
    told = {
        entry.layer: entry.rule for entry in look(model, X, by_layer | {"relu": Gradient()}, target=0).ledger.entries
    }
    assert {layer: told[layer] for layer in "01234"} == {
        "0": "Shares", "1": "Passes", "2": "Passes", "3": "Gradient", "4": "Gradient",
    }  # fmt: skip


def test_rule_sets_that_are_wrong(look):
    with pytest.raises(ParameterError, match=r"no operation, family or kind 'rellu'.*Did you mean 'relu'"):
        RuleSet("wrong", {"rellu": Gradient()})
    with pytest.raises(ParameterError, match=r"rule for 'relu' is a .*expected an instance"):
        RuleSet("wrong", {"relu": Gradient})
    with pytest.raises(ParameterError, match="carries='relevances'"):
        RuleSet("wrong", carries="relevances")
    with pytest.raises(ParameterError, match="no canonizer 'batchnorm'"):
        RuleSet("wrong", canonizers=("batchnorm",))

    @dataclass(frozen=True)
    class Short(Rule):
        def __call__(self, node, carried):
            return [carried[:1]]

    with pytest.raises(ProtocolError, match=r"rule Short of rule set 'wrong' gave \[\(1, 1\)\] at Node\(addmm"):
        look(Small().double(), X[:1], RuleSet("wrong", {"weighted": Short()}), target=0)


@dataclass(frozen=True, eq=False)
class ByRules(Explainer):
    rules: RuleSet

    def explain(self, sample):
        seen = yield Look(at=sample, gradients=["input"], rules=self.rules)
        checks = (seen.ledger.check("conservation", 1e-6), seen.ledger.check_ruled())
        return Attribution(seen.gradients["input"], over="input", checks=checks)


def test_a_technique_may_take_a_rule_set_as_its_parameter():
    result = pellucid.explain(Small().double(), X, ByRules(SHARES), target=0)
    assert result.values.tolist() == [[3.0, 2.0], [2.0, 2.0]]
    assert [check.verdict for check in result.checks][:2] == ["fail", "pass"]
    assert result.meta.passes == {"forward": 1, "backward": 1}
    with pytest.raises(ParameterError, match="rules"):
        ByRules("shares")


def test_factors_and_other_weights_are_no_business_of_rules(look):
    model = Small().double()
    with pytest.raises(ProtocolError, match=r"factors by rules.*a look of their own"):
        look(model, X, SHARES, target=0, factors=["*"])
    with pytest.raises(ProtocolError, match=r"other weights together with rules.*load the weights into the model"):
        look(model, X, SHARES, target=0, weights=model.state_dict())
