"""Recurrent networks by rules: results against plain derivations, and the refusal of what no graph can stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pellucid
from pellucid import Unsuitable

X = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Reads(nn.Module):
    """A recurrent layer over (B, T, 3), read at its last step."""

    def __init__(self, kind: type[nn.RNNBase], **options: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.cell, self.head = kind(3, 5, batch_first=True, **options), nn.Linear(5, 2, **options)
        self.double().eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0][:, -1])


class ByCells(nn.Module):
    """The same network of an LSTM, as a loop over a cell."""

    def __init__(self, model: Reads) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 5).double(), model.head
        self.cell.load_state_dict({name.removesuffix("_l0"): one for name, one in model.cell.state_dict().items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = (x.new_zeros(len(x), 5), x.new_zeros(len(x), 5))
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.head(state[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_differences_are_complete_and_relevance_is_accounted_for(kind):
    model = Reads(kind)
    with torch.no_grad():
        score, start = model(X)[:, 1], model(torch.zeros_like(X))[:, 1]
    for rule in ("rescale", "reveal_cancel"):
        values = pellucid.explain(model, X, pellucid.create("deeplift", rule=rule), target=1).values
        torch.testing.assert_close(values.sum(dim=(1, 2)), score - start, rtol=1e-9, atol=1e-12)
    for row, own in zip(X[:, None], score.tolist(), strict=True):
        for name in ("lrp", "deep_taylor"):
            result = pellucid.explain(model, row, name, target=1)
            kept = float(result.checks.named("bias share").value) * abs(own)
            assert float(result.values.sum()) + kept == pytest.approx(own, rel=1e-3)
            assert result.checks.passed, (name, result.checks)


def test_an_lstm_is_the_loop_over_its_cell():
    model = Reads(nn.LSTM)
    looped = ByCells(model).eval()
    torch.testing.assert_close(looped(X), model(X))
    for technique in ("deeplift", "guided_backprop", pellucid.create("lrp", composite="lrp_0", stabilizer=0.0)):
        one, other = (pellucid.explain(net, X, technique, target=0).values for net in (model, looped))
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_lrp_0_of_a_plain_recurrent_layer_is_what_the_steps_hand_back():
    """h_t = tanh(W x_t + U h_(t-1)): activations pass, each sum shares by contribution."""
    model = Reads(nn.RNN, bias=False)
    inward, onward = model.cell.weight_ih_l0.detach(), model.cell.weight_hh_l0.detach()
    hidden = [torch.zeros(5, dtype=torch.float64)]
    sums = []
    for x in X[0]:
        sums.append(inward @ x + onward @ hidden[-1])
        hidden.append(torch.tanh(sums[-1]))
    relevance = hidden[-1] * model.head.weight[1].detach()
    expected = []
    for x, before, total in zip(X[0].flip(0), hidden[-2::-1], sums[::-1], strict=True):
        each = relevance / total
        expected.append(x * (inward.T @ each))
        relevance = before * (onward.T @ each)
    found = pellucid.explain(model, X[:1], pellucid.create("lrp", composite="lrp_0", stabilizer=0.0), target=1).values
    torch.testing.assert_close(found[0], torch.stack(expected[::-1]), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.sum(), model(X[:1])[0, 1].detach())


def test_packed_sequences_are_refused_with_the_reason_and_an_alternative():
    class Packed(Reads):
        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True)
            return self.head(self.cell(packed)[1][0][-1])

    model = Packed(nn.LSTM)
    for name in ("lrp", "deeplift", "guided_backprop"):
        with pytest.raises(Unsuitable, match=r"depends on its input's values.*in 'cell'.*integrated_gradients"):
            pellucid.explain(model, X, name, target=0)
    assert pellucid.explain(model, X, "integrated_gradients", target=0).values.isfinite().all()


def test_gradient_times_input_lrp_0_and_deeplift_are_one_on_networks_of_relus_without_biases():
    class Net(nn.Module):
        """Functional and reused ReLUs, a residual sum, pooling."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.one, self.two = nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.head, self.act = nn.Linear(4, 3, bias=False), nn.ReLU()
            self.double()

        def forward(self, x):
            x = self.act(self.one(x))
            x = F.relu(self.two(x)) + x
            return self.head(F.avg_pool2d(self.act(x - 0.0), 2).mean(dim=(2, 3)))

    model, x = Net().eval(), torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(leaf)[:, 2].sum(), leaf)
    for technique in ("input_x_gradient", "deeplift", pellucid.create("lrp", composite="lrp_0", stabilizer=0.0)):
        found = pellucid.explain(model, x, technique, target=2).values
        torch.testing.assert_close(found, x * slope, rtol=1e-8, atol=1e-12)
