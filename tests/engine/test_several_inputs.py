"""Models that take several inputs, by position, by name or as one mapping."""

from __future__ import annotations

import collections

import pytest
import torch
from torch import nn

from pellucid import InputError, Leaves, Look, ModelError


def near(one, two, tolerance=1e-5):
    two = two.detach()
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * float(two.abs().max()) + 1e-12)


class Several(nn.Module):
    """An image, a table, token ids and an optional scale."""

    def __init__(self):
        super().__init__()
        self.conv, self.table, self.words = nn.Conv2d(3, 4, 3), nn.Linear(5, 4), nn.Embedding(10, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, image, table, ids=None, scale=1.0):
        features = torch.tanh(self.conv(image)).mean(dim=(2, 3)) * torch.tanh(self.table(table)) * scale
        return self.head(features if ids is None else features + self.words(ids).mean(dim=1))


class OneMapping(Several):
    def forward(self, batch):
        return super().forward(**batch)


def given(count=4):
    g = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(count, 3, 8, 8, generator=g),
        "table": torch.randn(count, 5, generator=g),
        "ids": torch.randint(0, 10, (count, 6), generator=g),
    }


def several(kind=Several):
    torch.manual_seed(0)
    return kind().eval()


def slopes(inputs, classes):
    model = several()
    image, table = (inputs[name].clone().requires_grad_() for name in ("image", "table"))
    scores = model(image, table, inputs.get("ids"), inputs.get("scale", 1.0))
    return torch.autograd.grad(scores[torch.arange(len(image)), classes].sum(), [image, table])


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
@pytest.mark.parametrize(
    "form",
    [
        lambda inputs: (several(), inputs),
        lambda inputs: (several(OneMapping), inputs),
        lambda inputs: (several(), collections.OrderedDict(reversed(inputs.items()))),
        lambda inputs: (several(), tuple(inputs.values())),
        lambda inputs: (several(), list(inputs.values())),
    ],
    ids=["keywords", "one mapping", "other order", "tuple", "list"],
)
def test_inputs_of_several_forms(t, planned, form, batch_size):
    model, inputs = form(given())
    classes = torch.tensor([0, 1, 2, 1])
    found = planned(
        model, inputs, {"s": t.saliency, "i": t.integrated(4), "m": t.smooth()}, classes, batch_size=batch_size
    )
    assert not found.errors
    image, table = slopes(given(), classes)
    saliency = found.results["s"]
    assert isinstance(saliency, Leaves)
    names = ("0", "1") if isinstance(inputs, (tuple, list)) else ("image", "table")
    assert set(saliency) == set(names)  # the token ids go along unattributed
    near(saliency[names[0]], image)
    near(saliency[names[1]], table)
    assert found.results["i"][names[1]].shape == (4, 5)
    assert found.results["m"][1][names[0]].shape == (4, 3, 8, 8)


def test_constants_and_none_go_along(t, planned):
    for constants in ({"scale": 2.0}, {"scale": torch.tensor(2.0)}, {"scale": torch.tensor(2)}, {"ids": None}):
        inputs = given() | constants
        seen = planned(several(), inputs, t.saliency, [0, 0, 1, 2])
        expected = slopes(inputs, torch.tensor([0, 0, 1, 2]))
        near(seen["image"], expected[0])
        near(seen["table"], expected[1])


def test_one_of_several_inputs_may_not_matter(t, planned):
    class First(nn.Module):
        def forward(self, a, b):
            return a * 2

    inputs = {"a": torch.ones(2, 3), "b": torch.ones(2, 5)}
    seen = planned(First(), inputs, t.saliency, 1)
    assert seen["a"][:, 1].tolist() == [2, 2]
    assert seen["b"].abs().max() == 0


def test_layers_that_depend_on_token_ids_alone(t, planned):
    seen = planned(several(), given(), t.look(activations=["words"], gradients=["words", "input"]), 1)
    near(seen.gradients["words"], several().head.weight[1].detach().expand(4, 6, 4) / 6)
    near(seen.gradients["input"]["table"], slopes(given(), torch.ones(4, dtype=torch.long))[1])


def test_parts_and_derived_samples_take_token_ids_along(t, planned):
    def passes(sample):
        part = yield Look(at=sample[[3, 1]])
        draws = yield Look(at=sample.derived(2, lambda inputs, draws, examples: inputs))
        return part.scores, draws.scores

    part, draws = planned(several(), given(), passes, [0, 1, 2, 1])
    whole = planned(several(), given(), t.scores, [0, 1, 2, 1])
    near(part, whole[[3, 1]])
    near(draws, whole.expand(2, -1))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"image": torch.ones(4, 3, 8, 8), "table": torch.ones(3, 5)}, "different numbers of examples"),
        ({"image": torch.ones(4, 3, 8, 8), "ids": torch.ones(3, 5, dtype=torch.long)}, "different numbers of examples"),
        ({"ids": torch.ones(4, 6, dtype=torch.long)}, "none of the inputs"),
        ({"image": torch.ones(4, 3, 8, 8), "table": torch.full((4, 5), torch.nan)}, "input 'table' are not finite"),
        ({"image": torch.ones(0, 3, 8, 8), "table": torch.ones(0, 5)}, "at least one example"),
        ({}, "none of the inputs"),
    ],
)
def test_several_inputs_that_do_not_fit(t, planned, inputs, told):
    with pytest.raises(InputError, match=told):
        planned(several(), inputs, t.saliency, 1)


def test_inputs_that_the_model_does_not_take(t, planned):
    with pytest.raises(ModelError, match="Several failed on inputs of shape"):
        planned(several(), {**given(), "sound": torch.ones(4, 2)}, t.saliency, 1)
