"""Factors of per-example gradients, against autograd, one example at a time, in double precision."""

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import pellucid
from pellucid import Attribution, Explainer, LayerError, Look, Loss, ModelError, ProtocolError, Unit, Unsuitable


@dataclass(frozen=True, eq=False)
class Grab(Explainer):
    """Hands out the factors that it saw."""

    found: list
    patterns: tuple = ("*",)
    weights: object = None
    targets: object = None

    def explain(self, sample):
        seen = yield Look(at=sample, factors=self.patterns, weights=self.weights, targets=self.targets)
        self.found.append(seen)
        return Attribution(torch.zeros(len(sample), 1), over="input")


def seen_by(model, x, y, **options):
    grab = Grab([], **options)
    pellucid.explain(model, x, grab, Loss(y))
    return grab.found[0]


def truth(model, x, y, weights=None):
    """The gradient of each example's loss by each parameter, by autograd."""
    parameters = {
        k: v.detach().clone().requires_grad_() for k, v in (weights or dict(model.named_parameters())).items()
    }
    rows = {name: [] for name in parameters}
    for i in range(len(x)):
        loss = F.cross_entropy(functional_call(model, parameters, (x[i : i + 1],)), y[i : i + 1])
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            rows[name].append(torch.zeros_like(parameters[name]) if gradient is None else gradient)
    return {name: torch.stack(several) for name, several in rows.items()}


def head(width):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


class Lines(nn.Module):
    """One axis: a dilated convolution, instance and layer normalisation, a linear layer at every position."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 5, 3, padding=1, dilation=2, bias=False), nn.InstanceNorm1d(5, affine=True)
        self.layer, self.head = nn.LayerNorm(5), nn.Linear(5, 4)

    def forward(self, x):
        hidden = self.norm(self.conv(x.flatten(2))).transpose(1, 2)
        return self.head(self.layer(hidden).relu_()).mean(1)


class Tokens(nn.Module):
    """Attention of a sequence on itself and on another, class token, position table, layer scale."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 17, 8))
        self.scale = nn.Parameter(torch.randn(8))
        self.patch = nn.Conv2d(3, 8, 3, 3)
        self.one = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.other = nn.MultiheadAttention(8, 2, kdim=8, vdim=8, batch_first=batch_first)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.places
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        tokens = tokens + self.one(tokens, tokens, tokens)[0] * self.scale
        memory = tokens * 2
        tokens = self.block(tokens + self.other(tokens, memory, memory)[0])
        return self.head(tokens[:, 0] if self.batch_first else tokens[0])


class Words(nn.Module):
    """An embedding with padding, a layer that runs twice, weights tied to the table, and a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.table, self.twice = nn.Embedding(7, 6, padding_idx=1), nn.Linear(6, 6)
        self.out, self.memory = nn.Linear(6, 7), nn.LSTM(6, 6, batch_first=True)
        self.out.weight = self.table.weight

    def forward(self, x):
        hidden = self.twice(self.twice(self.table((x.flatten(1)[:, :9].abs() * 3).long() % 7)).tanh())
        return self.out(self.memory(hidden)[0].mean(1) + hidden.mean(1))[:, :4]


class WideTable(nn.Module):
    """A table that is so large that its gradients stay factored."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(700, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.table((x.flatten(1)[:, :9].abs() * 300).long() % 700)).sum(1)


class Functional(nn.Module):
    """Parameters given to functions, in place and otherwise, without modules."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3) / 5)
        self.gain, self.shift = nn.Parameter(torch.randn(6, 1, 1)), nn.Parameter(torch.randn(1, 6, 1, 1))
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        maps = F.conv2d(x, self.kernel, padding=1)
        maps = F.relu(maps * self.gain + self.shift, inplace=True)
        return F.linear(maps.mean((2, 3)), self.weight)


MODELS = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(True),
        nn.Conv2d(6, 8, 3, stride=2, dilation=2, padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(True),
        nn.Conv2d(8, 8, 2, groups=8, bias=False),
        nn.GroupNorm(2, 8),
        head(8),
    ),
    "strided and dilated": lambda: nn.Sequential(
        nn.Conv2d(3, 12, (3, 2), stride=(1, 2), dilation=(2, 1), padding=(2, 1)),
        nn.Tanh(),
        nn.Conv2d(12, 5, 3, stride=2),
        head(5),
    ),
    "padding": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding="same", padding_mode="reflect"),
        nn.Tanh(),
        nn.Conv2d(6, 6, (3, 5), padding="same"),
        head(6),
    ),
    "wide, few positions": lambda: nn.Sequential(
        nn.AvgPool2d(6), nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 2), head(64)
    ),
    "volumes": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv3d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Linear(432, 2),
        nn.Flatten(),
        nn.Linear(8, 4),
    ),
    "lines": Lines,
    "attention": lambda: Tokens(True),
    "words": Words,
    "wide table": WideTable,
    "functions": Functional,
    "rms": lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.RMSNorm(8), nn.Linear(8, 4)),
}


def made(name, n=5):
    torch.manual_seed(3)
    model = MODELS[name]().double().eval()
    return model, torch.randn(n, 3, 12, 12, dtype=torch.float64), torch.randint(0, 4, (n,))


@pytest.mark.parametrize("name", MODELS)
def test_factors_are_the_gradients_of_each_example(name):
    model, x, y = made(name)
    factors, expected = seen_by(model, x, y).factors, truth(model, x, y)
    left = {k for k in expected if k.startswith("memory")}
    assert set(factors.uncovered) == left
    found = factors.by_parameter()
    assert set(found) == set(expected) - left
    for key, values in found.items():
        assert values.shape == expected[key].shape
        assert (values - expected[key]).abs().max() <= 1e-10 * max(1, expected[key].abs().max())
    rows = torch.cat([expected[key].flatten(1) for key in found], dim=1)
    kernel = rows @ rows.T
    scale = kernel.abs().max()
    assert (factors.inner(factors) - kernel).abs().max() <= 1e-10 * scale
    assert (factors[1:3].inner(factors[2:]) - kernel[1:3, 2:]).abs().max() <= 1e-10 * scale
    assert (factors.squares() - kernel.diagonal()).abs().max() <= 1e-10 * scale
    weights = torch.tensor([[1.0, -2, 0, 3, 0.5]], dtype=torch.float64)
    sums, written = factors.weighted(weights), factors.written()
    assert torch.allclose(sums, weights @ written, atol=1e-12)
    assert factors.numel == written.shape[1] == rows.shape[1]


@pytest.mark.parametrize("name", MODELS)
def test_single_precision_deviates_by_1e_5_at_most(name):
    model, x, y = made(name)
    exact = seen_by(model, x, y).factors
    rough = seen_by(model.float(), x.float(), y).factors
    kernel = exact.inner(exact)
    assert (rough.inner(rough).double() - kernel).abs().max() <= 1e-5 * kernel.abs().max()


def test_sequences_first_are_read_rightly_or_left_out():
    """Outside of attention nothing tells examples from positions; what one example alone contradicts is left out."""
    torch.manual_seed(0)
    model = Tokens(False).double().eval()
    for n in (1, 5, 17):  # 17 tokens: as many as examples
        x, y = torch.randn(n, 3, 12, 12, dtype=torch.float64), torch.randint(0, 4, (n,))
        factors, expected = seen_by(model, x, y).factors, truth(model, x, y)
        for key, values in factors.by_parameter().items():
            assert (values - expected[key]).abs().max() <= 1e-10, key
        assert {"one.in_proj_weight", "other.in_proj_weight", "block.self_attn.out_proj.bias"} <= set(factors.names)
        # The same for one example as for several, so that their factors have inner products.
        assert set(factors.uncovered) == set(expected) - set(factors.names) >= {"scale", "block.linear1.weight"}
        assert factors.check().passed is False


class Free(nn.Module):
    """Parameters of which the model makes what it likes, before a linear head."""

    def __init__(self, use, **shapes):
        super().__init__()
        self.use, self.head = use, nn.Linear(6, 4)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        return self.head(self.use(self, x).tanh())


SLICES = {
    "one number of several": (lambda m, x: x * m.p[0], {"p": 6}),
    "one row of several": (lambda m, x: x + m.p[:1], {"p": 6}),
    "one row, expanded": (lambda m, x: x + m.p[:1].expand(len(x), 6), {"p": 6}),
    "one bias for all outputs": (lambda m, x: F.linear(x, m.w, m.p), {"w": (6, 6), "p": 1}),
    "two rows of a kernel": (
        lambda m, x: F.conv2d(x.reshape(-1, 1, 2, 3), m.w[:2]).flatten(1) + m.p,
        {"w": (4, 1, 2, 1), "p": 6},
    ),
    "a scalar for all": (lambda m, x: x * m.p, {"p": ()}),
    "a scalar in a vector": (lambda m, x: m.p * x + 1, {"p": 1}),
    "a bias whose weight is not known": (lambda m, x: F.linear(x, m.w, m.p) + m.w.exp().sum(), {"w": (6, 6), "p": 6}),
}


@pytest.mark.parametrize("name", SLICES)
def test_parts_of_parameters_are_read_rightly_or_left_out(name):
    torch.manual_seed(0)
    use, shapes = SLICES[name]
    model, x, y = Free(use, **shapes).double(), torch.randn(5, 6, dtype=torch.float64), torch.arange(5) % 4
    factors, expected = seen_by(model, x, y).factors, truth(model, x, y)
    for key, values in factors.by_parameter().items():
        torch.testing.assert_close(values, expected[key], atol=1e-10, rtol=1e-9)
    assert set(factors.names) | set(factors.uncovered) == set(expected)
    assert "p" in (factors.names if "scalar" in name or "bias whose" in name else [*factors.uncovered, *factors.names])


CONSTANTS = {
    "a table of positions": lambda m, x: (x + F.embedding(torch.arange(5), m.p)).mean(1),
    "a linear layer of a table": lambda m, x: (x + F.linear(m.table, m.w)).mean(1),
    "two of them": lambda m, x: (x + F.linear(F.linear(m.table, m.w).tanh(), m.w2)).mean(1),
    "a sum with a table": lambda m, x: (x + (m.table + m.q).tanh()).mean(1),
}


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("rows", [1, 2, 5, 10])
def test_what_is_the_same_for_all_examples_is_left_out_however_many_there_are(name, rows):
    """Five positions may be as many as examples, and one example among several must show the same parameters."""
    torch.manual_seed(0)
    model = Free(CONSTANTS[name], p=(5, 6), q=6, w=(6, 6), w2=(6, 6)).double()
    model.register_buffer("table", torch.randn(5, 6, dtype=torch.float64))
    x, y = torch.randn(rows, 5, 6, dtype=torch.float64), torch.arange(rows) % 4
    factors, expected = seen_by(model, x, y).factors, truth(model, x, y)
    assert set(factors.names) == {"head.weight", "head.bias"}
    for key, values in factors.by_parameter().items():
        torch.testing.assert_close(values, expected[key])


ONE_BY_ONE = {
    "a linear layer": lambda m, one: F.linear(one, m.w),
    "a normalisation": lambda m, one: F.layer_norm(one, (5, 6), m.p),
    "a table": lambda m, one: F.embedding((one[:, 0].abs() * 2).long() % 5, m.p),
    "a sum": lambda m, one: (one + m.q).tanh(),
    "a vector": lambda m, one: F.linear(one[0], m.w)[None],
    "a normalised vector": lambda m, one: F.layer_norm(one[0], (6,), m.q)[None],
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
@pytest.mark.parametrize("rows", [1, 3, 5, 6])
def test_what_sees_one_example_after_the_other_is_left_out_however_many_there_are(name, rows):
    """Five positions may be as many as examples, and each use would be taken for the one use of all of them."""
    torch.manual_seed(0)
    use = ONE_BY_ONE[name]
    model = Free(lambda m, x: torch.stack([use(m, one).mean(0) for one in x]), p=(5, 6), q=6, w=(6, 6)).double()
    x, y = torch.randn(rows, 5, 6, dtype=torch.float64), torch.arange(rows) % 4
    factors, expected = seen_by(model, x, y).factors, truth(model, x, y)
    assert set(factors.names) == {"head.weight", "head.bias"}
    for key, values in factors.by_parameter().items():
        torch.testing.assert_close(values, expected[key])


def test_a_model_that_mixes_its_batch_is_refused():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(64, 4)
    )
    with pytest.raises(Unsuitable, match="statistics of the batch"):
        seen_by(model.double(), torch.randn(3, 3, 6, 6, dtype=torch.float64), torch.arange(3))


def test_a_score_that_some_layers_do_not_count_for_has_zeros_there():
    """A unit's activation can be held against losses, which all layers count for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x, y = torch.randn(3, 6, dtype=torch.float64), torch.tensor([0, 1, 3])
    one, other = seen_by(model, x, y, targets=(Unit("0", 2), Loss(y))).factors
    expected = truth(model, x, y)
    slopes = torch.zeros(3, 5, dtype=torch.float64)
    slopes[:, 2] = 1
    kernel = torch.einsum("qo,qi,noi->qn", slopes, x, expected["0.weight"]) + slopes @ expected["0.bias"].T
    torch.testing.assert_close(one.inner(other), kernel)


def test_joined_axes_of_examples_and_windows():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.each, self.head = nn.Linear(9, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.each(x.reshape(-1, 9)).tanh().reshape(len(x), -1, 4).mean(1))

    torch.manual_seed(0)
    model = Windows().double()
    x, y = torch.randn(5, 3, 12, 12, dtype=torch.float64), torch.randint(0, 4, (5,))
    factors, expected = seen_by(model, x, y).factors, truth(model, x, y)
    assert not factors.uncovered
    for key, values in factors.by_parameter().items():
        assert torch.allclose(values, expected[key], atol=1e-12)


def test_batches_make_no_difference():
    model, x, y = made("convolutions")
    grab, whole = Grab([]), seen_by(model, x, y).factors
    pellucid.explain(model, x, grab, Loss(y), batch_size=2)
    found = grab.found[0].factors
    assert len(found) == len(whole) == 5
    assert torch.allclose(found.inner(whole), whole.inner(whole))


def test_other_weights_stand_in_for_the_models_own():
    model, x, y = made("convolutions")
    other = made("convolutions")[0]
    torch.manual_seed(9)
    for parameter in other.parameters():
        parameter.data.normal_(0, 0.2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = seen_by(model, x, y, weights=other.state_dict())
    expected = truth(model, x, y, dict(other.named_parameters()))
    for key, values in found.factors.by_parameter().items():
        assert torch.allclose(values, expected[key], atol=1e-12)
    assert torch.allclose(found.scores, F.cross_entropy(other(x), y, reduction="none"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ModelError, match="not those of"):
        seen_by(model, x, y, weights={"strange": torch.zeros(1)})


def test_the_predicted_class_stays_the_models_own_under_other_weights():
    model, x, _ = made("convolutions")
    other = {name: -tensor if name.endswith("2.weight") else tensor for name, tensor in model.state_dict().items()}

    class Both(Explainer):
        def get_params(self):
            return {}

        def explain(self, sample):
            self.seen = yield Look(at=sample, weights=other)
            return Attribution(torch.zeros(len(sample), 1), over="input")

    both = Both()
    pellucid.explain(model, x, both)
    logits = functional_call(model, other, (x,))
    assert torch.allclose(both.seen.scores, logits.gather(1, model(x).argmax(1, keepdim=True))[:, 0])


def test_factors_give_their_memory_back_at_once():
    model, x, y = made("convolutions")
    gc.disable()
    try:
        factors = seen_by(model, x, y).factors
        factors.inner(factors)
        alive = [weakref.ref(layer) for layer in factors] + [weakref.ref(layer.written) for layer in factors]
        del factors
        assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


def test_some_parameters_only():
    model, x, y = made("convolutions")
    found = seen_by(model, x, y, patterns=("0.bias", "3.*", "7.2.weight")).factors
    assert set(found.names) == {"0.bias", "3.weight", "3.bias", "7.2.weight"}
    expected = truth(model, x, y)
    for key, values in found.by_parameter().items():
        assert torch.allclose(values, expected[key], atol=1e-12)


def test_several_targets_give_several_factors():
    model, x, y = made("convolutions")
    targets = [pellucid.ClassLogit(c) for c in range(4)]
    several = seen_by(model, x, y, targets=targets).factors
    loss = seen_by(model, x, y).factors.written()
    residual = model(x).softmax(1) - F.one_hot(y, 4)
    assert torch.allclose(sum(r[:, None] * f.written() for r, f in zip(residual.T, several, strict=True)), loss)


def test_an_argument_that_is_changed_later_is_copied():
    class Changes(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(432, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            hidden = self.one(x.flatten(1))
            out = torch.tanh(self.two(hidden))
            hidden.mul_(2)
            return self.head(out)

    torch.manual_seed(0)
    model = Changes().double().eval()
    x, y = torch.randn(5, 3, 12, 12, dtype=torch.float64), torch.randint(0, 4, (5,))
    found = seen_by(model, x, y).factors.by_parameter()["two.weight"]
    hidden = model.one(x.flatten(1)).detach()
    out = torch.tanh(model.two(hidden))
    residual = ((model.head(out).softmax(1) - F.one_hot(y, 4)) @ model.head.weight) * (1 - out**2)
    assert torch.allclose(found, residual[:, :, None] * hidden[:, None], atol=1e-12)


def test_bad_requests():
    model, x, y = made("convolutions")
    with pytest.raises(LayerError, match="no parameters 'nothing"):
        seen_by(model, x, y, patterns=("nothing*",))
    factors = seen_by(model, x, y).factors
    with pytest.raises(ProtocolError, match="different parameters"):
        factors.inner(seen_by(model, x, y, patterns=("0.*",)).factors)

    class Derives(Explainer):
        def get_params(self):
            return {}

        def explain(self, sample):
            yield Look(at=sample.jittered(2, 0.1), factors=["*"])

    with pytest.raises(ProtocolError, match="derived sample"):
        pellucid.explain(model, x, Derives(), Loss(y))
