"""What a captured graph stands for, when it is made anew, and which models are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pellucid
from pellucid import Adapter, LayerError, ParameterError, ProtocolError, RuleSet, Unsuitable
from pellucid.rules.capture import capture
from pellucid.rules.graph import replay


class Linear(nn.Module):
    """A linear function whose forward a test gives."""

    def __init__(self, forward=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 3)
        self.scale = 1.0
        self._run = forward or (lambda self, x: self.linear(x) * self.scale)

    def forward(self, x):
        return self._run(self, x)


def made(forward=None) -> nn.Module:
    return Linear(forward).double().eval()


def x(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plainly(look, model, inputs, plain):
    """The gradient by rules and by autograd."""
    return [look(model, inputs, rules, target=1).gradients["input"] for rules in (plain, None)]


def test_a_graph_is_kept_and_holds_the_parameters_themselves(look, plain):
    adapter = Adapter(made())
    first = look(adapter, x(), plain, target=1)
    (graph,) = [one.graph for one in adapter.cache["graphs"].values()]
    assert any(tensor is adapter.module.linear.weight for tensor in graph.constants.values())
    with torch.no_grad():
        adapter.module.linear.weight.mul_(2)
    second = look(adapter, x(), plain, target=1)
    assert [one.graph for one in adapter.cache["graphs"].values()] == [graph]
    assert torch.equal(second.gradients["input"], 2 * first.gradients["input"])


@pytest.mark.parametrize("change", ["parameter", "attribute", "module", "hook"])
def test_a_changed_model_is_captured_anew(change, look, plain):
    adapter = Adapter(made())
    look(adapter, x(), plain, target=1)
    if change == "parameter":
        adapter.module.linear.weight = nn.Parameter(torch.randn(3, 6).double())
    elif change == "attribute":
        adapter.module.scale = 3.0
    elif change == "module":
        adapter.module.linear = nn.Linear(6, 3).double()
    else:
        adapter.module.linear.register_forward_hook(lambda part, given, output: output * 5)
    rules, autograd = plainly(look, adapter, x(), plain)
    assert torch.allclose(rules, autograd, rtol=1e-12)
    assert len(adapter.cache["graphs"]) == 1


def test_fewer_rows_are_filled_up_rather_than_captured_again(look, plain):
    adapter = Adapter(made())
    whole = look(adapter, x(7), plain, target=1, batch_size=4)
    assert [rows for rows, _ in adapter.cache["graphs"]] == [4]
    assert torch.allclose(whole.gradients["input"], plainly(look, made(), x(7), plain)[1])
    look(adapter, x(7), RuleSet("exact", fills=False), target=1, batch_size=4)
    assert sorted(rows for rows, _ in adapter.cache["graphs"]) == [3, 4]


IN_PLACE = {
    "function": lambda self, x: self.linear(x).relu_().mul_(2.0),
    "view": lambda self, x: _with_view(self.linear(x)),
    "buffer of zeros": lambda self, x: _gathered(self.linear(x)),
    "input": lambda self, x: self.linear(x.mul_(3.0)),
    "part of a bias": lambda self, x: F.linear(x, self.linear.weight, _with_part_of_bias(self.linear.bias)).relu(),
    "slices": lambda self, x: torch.stack([one.neg_() for one in self.linear(x).unbind(1)], dim=1),
}


def _with_view(y):
    half = y[:, :2]
    half.mul_(3.0)
    return y


def _with_part_of_bias(bias):
    bias = bias.clone()
    bias[:1].zero_()
    return bias


def _gathered(y):
    out = y.new_zeros(y.shape)
    out[:, 1] = y[:, 0]
    out += y
    return out


PURE = {
    "function": lambda self, x: self.linear(x).relu() * 2.0,
    "view": lambda self, x: self.linear(x) * torch.tensor([3.0, 3.0, 1.0]).double(),
    "buffer of zeros": lambda self, x: _doubled(self.linear(x)),
    "input": lambda self, x: self.linear(x * 3.0),
    "part of a bias": lambda self, x: F.linear(
        x, self.linear.weight, self.linear.bias * torch.tensor([0.0, 1.0, 1.0]).double()
    ).relu(),
    "slices": lambda self, x: -self.linear(x),
}


def _doubled(y):
    return F.pad(y[:, :1], (1, 1)) + y


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_changed_in_place(name, look, plain):
    given = x()
    rules = look(made(IN_PLACE[name]), given, plain, target=1).gradients["input"]
    autograd = look(made(PURE[name]), given, target=1).gradients["input"]
    assert torch.allclose(rules, autograd, rtol=1e-12)
    assert torch.equal(given, x())


def _partly_detached(self, x):
    with torch.no_grad():
        scale = self.linear(x).sum(dim=1, keepdim=True)
    return self.linear(x) * scale + self.linear(x).detach()


def test_what_the_model_detaches_carries_nothing(look, plain):
    rules, autograd = plainly(look, made(_partly_detached), x(), plain)
    assert torch.allclose(rules, autograd, rtol=1e-12)


class Straight(torch.autograd.Function):
    """Rounds, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        return g


def test_functions_with_their_own_backward_go_by_their_forward(look, plain):
    model = made(lambda self, x: Straight.apply(self.linear(x)))
    found = look(model, x(), plain, target=1).gradients["input"]
    given = x().requires_grad_()
    expected = torch.autograd.grad(model.linear(given).exp()[:, 1].sum(), given)[0]
    assert torch.allclose(found, expected, rtol=1e-12)


def test_what_has_its_own_backward_is_named(look, plain):
    custom = made(lambda self, x: Straight.apply(self.linear(Straight.apply(x))))
    ledger = look(custom, x(), plain, target=1).ledger
    assert ledger.by_forward == ("Straight",)
    check = ledger.check_ruled()
    assert check.passed
    assert check.note == "by the forward pass alone of what has its own backward: Straight"
    assert look(custom, x(5), plain, target=[0, 1, 0, 1, 0], batch_size=2).ledger.by_forward == ("Straight",)
    ordinary = made(lambda self, x: checkpoint(self.linear, x, use_reentrant=True))
    assert look(ordinary, x(), plain, target=1).ledger.by_forward == ()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant, look, plain):
    model = made(lambda self, x: checkpoint(lambda y: self.linear(y).tanh(), x, use_reentrant=reentrant))
    plain_model = made(lambda self, x: self.linear(x).tanh())
    found = look(model, x(), plain, target=1).gradients["input"]
    assert torch.allclose(found, plainly(look, plain_model, x(), plain)[1], rtol=1e-12)


BRANCHES = {
    "item": lambda self, x: self.linear(x) * (2 if x.sum().item() > 0 else 3),
    "bool": lambda self, x: self.linear(x) if x.mean() > 0 else -self.linear(x),
    "shape": lambda self, x: self.linear(x) + x[x > 0].sum(),
    "nonzero": lambda self, x: self.linear(x) + (x > 0).nonzero().shape[0],
    "list": lambda self, x: self.linear(x) * x.detach().tolist()[0][0],
}


@pytest.mark.parametrize("name", BRANCHES)
def test_control_flow_by_values_is_refused(name, look, plain):
    with pytest.raises(Unsuitable, match=r"input's values|cannot be captured"):
        look(made(BRANCHES[name]), x(), plain, target=1)


def test_a_branch_that_only_other_inputs_take_is_noticed(look, plain):
    given = x()

    def forward(self, y):
        # What is compared is outside of the graph, so that only the comparison on other inputs can notice.
        return self.linear(y) * (2.0 if forward.calls.append(y) or len(forward.calls) % 2 else 3.0)

    forward.calls = []
    with pytest.raises(Unsuitable, match="other outputs than the model"):
        look(made(forward), given, plain, target=1)


def test_random_models_are_compared_under_one_seed(look, plain):
    model = made(lambda self, x: self.linear(F.dropout(x, 0.5, training=True)))
    assert look(model, x(), plain, target=1).gradients["input"].shape == (3, 6)


def test_the_model_is_left_as_it_was(look, plain):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(400, 2))
    model.train()
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(2, 3, 12, 12)
    look(model, images, plain, target=0)
    assert model.training
    assert all(part.training for part in model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_an_output_without_a_gradient_is_refused(look, plain):
    with pytest.raises(Unsuitable, match="differentiably"):
        look(made(lambda self, x: self.linear(x).detach()), x(), plain, target=1)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with pytest.raises(LayerError, match="no layer 'nothing'"):
        look(model, x(), plain, target=1, gradients=["nothing"])


def test_a_graph_replays_at_other_inputs():
    model = made(lambda self, x: self.linear(x).softmax(dim=1))
    graph = capture(lambda one: [model(one)], [x()], model)
    other = x() * 3 - 1
    assert torch.equal(replay(graph, [other])[0], model(other).detach())
    assert {op.layer for op in graph.ops} == {"", "linear"}


def test_references_that_do_not_fit(look):
    model, compares = made(), RuleSet("compares", needs_reference=True)
    with pytest.raises(ProtocolError, match="compares with a reference"):
        look(model, x(), compares, target=1)
    with pytest.raises(ProtocolError, match="compares with no reference"):
        look(model, x(), RuleSet("plain"), target=1, reference=lambda sample: sample)
    with pytest.raises(ProtocolError, match="without rules"):
        look(model, x(), target=1, reference=lambda sample: sample)
    with pytest.raises(ParameterError, match=r"reference has 2 rows for 3"):
        look(model, x(), compares, target=1, reference=lambda sample: sample[:2])
    with pytest.raises(ParameterError, match="inputs of shape"):
        look(model, x(), compares, target=1, reference=lambda sample: sample.at(x()[:, :4]))
    with pytest.raises(ProtocolError, match="expected a RuleSet"):
        look(model, x(), {"relu": 1}, target=1)


class _Narrow(nn.Module):
    """A model for which the memory suffices for two examples at most."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return self.layer(x).relu()


def test_a_batch_too_large_for_the_memory_is_captured_in_parts():
    model, x = _Narrow(), torch.randn(5, 4)
    in_parts = pellucid.explain(model, x, "lrp", target=1, progress=False)
    alone = pellucid.explain(model, x[3:4], "lrp", target=1, progress=False)
    assert torch.equal(in_parts.values[3:4], alone.values)
