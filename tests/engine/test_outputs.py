"""What models give: tuples, dictionaries, dataclasses, lists of detections, maps of classes."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import pellucid
from pellucid import Adapter, ClassLogit, LayerError, Leaves, Look, Mean, ModelError, Region, TargetError
from pellucid.engine.outputs import by_draw, cut, first_tensor, joined, mapped, tensors_in, with_first


def near(one, two, tolerance=1e-5):
    two = two.detach()
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * float(two.abs().max()) + 1e-12)


# --- outputs of several forms ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Answer:
    logits: torch.Tensor
    loss: torch.Tensor | None = None
    features: Any = None


class Pair(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor


class Returning(nn.Module):
    """Returns the scores and features in some form."""

    def __init__(self, form):
        super().__init__()
        self.form, self.features, self.head = form, nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        features = torch.tanh(self.features(x))
        return self.form(self.head(features), features)


FORMS = {
    "tensor": lambda logits, features: logits,
    "tuple": lambda logits, features: (logits, features),
    "list": lambda logits, features: [logits, features],
    "named": Pair,
    "dict": lambda logits, features: {"features": features, "logits": logits, "none": None, "n": 3},
    "out": lambda logits, features: collections.OrderedDict(out=logits, aux=features),
    "dataclass": lambda logits, features: Answer(logits, None, {"last": [features]}),
    "scalar loss": lambda logits, features: Answer(logits, logits.mean(), features),
    "single": lambda logits, features: {"prediction": logits},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_scores_are_found(t, planned, form):
    torch.manual_seed(0)
    model = Returning(FORMS[form]).eval()
    x = torch.randn(5, 6)
    plain = model.head(torch.tanh(model.features(x)))
    for batch_size in (2, "auto"):
        found = planned(model, x, {"s": t.scores, "g": t.saliency, "o": t.outputs}, 1, batch_size=batch_size)
        assert not found.errors
        near(found.results["s"], plain[:, 1].detach())
        near(found.results["g"], slope_of(model, x))
        logits = Adapter(model).logits(found.results["o"])
        near(logits, plain.detach())
        assert not any(tensor.requires_grad for tensor in tensors_in(found.results["o"]))
        assert type(found.results["o"]) is type(model(x))


def slope_of(model, x):
    return ((1 - torch.tanh(model.features(x)) ** 2) * model.head.weight[1]) @ model.features.weight


@pytest.mark.parametrize("form", FORMS)
def test_functions_of_the_output_see_their_own_rows_only(t, planned, form):
    torch.manual_seed(0)
    model, x = Returning(FORMS[form]).eval(), torch.randn(5, 6)
    rows = []

    def score(output):
        logits = Adapter(model).logits(output)
        rows.append(len(logits))
        return logits[:, 1]

    def other(sample):
        return (yield Look(at=sample.at(sample.inputs * 2), gradients=["input"])).gradients["input"]

    found = planned(model, x, {"s": t.saliency, "o": other}, score)
    assert rows == [5, 5]
    near(found.results["s"], slope_of(model, x).detach())
    near(found.results["o"], slope_of(model, x * 2).detach())


@pytest.mark.parametrize("form", FORMS)
def test_outputs_at_derived_samples_have_the_derived_axis_first(t, planned, form):
    torch.manual_seed(0)
    model, x = Returning(FORMS[form]).eval(), torch.randn(5, 6)
    at = {"at": lambda sample: sample.along("zero", [0.0, 0.5, 1.0]), "outputs": True}
    for batch_size in (4, 15):
        output = planned(model, x, t.look(**at), 1, batch_size=batch_size).outputs
        logits = Adapter(model).logits(output)
        assert logits.shape == (3, 5, 3)
        near(logits[1], Adapter(model).logits(model(x / 2)).detach())


def test_layers_that_return_several_tensors(t, planned):
    class Inner(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.linear, self.form = nn.Linear(6, 5), form

        def forward(self, x):
            return self.form(torch.tanh(self.linear(x)), x)

    class Outer(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.inner, self.head = Inner(form), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(first_tensor(self.inner(x)))

    forms = {**FORMS, "nested": lambda one, two: ({"a": [one]}, two)}
    del forms["dict"]  # its first tensor is the other one
    for form in forms.values():
        torch.manual_seed(0)
        model, x = Outer(form).eval(), torch.randn(4, 6)
        seen = planned(model, x, t.look(activations=["inner"], gradients=["inner"]), 1)
        near(seen.activations["inner"], torch.tanh(model.inner.linear(x)).detach())
        near(seen.gradients["inner"], model.head.weight[1].detach().expand(4, 5))


def test_outputs_without_clear_scores(t, planned):
    torch.manual_seed(0)
    model = Returning(lambda logits, features: {"a": logits, "b": features})
    with pytest.raises(ModelError, match=r"\['a', 'b'\].*not clear.*output="):
        planned(model, torch.randn(2, 6), t.saliency, 1)
    for output in ("a", lambda raw: raw["a"]):
        assert planned(Adapter(model, output=output), torch.randn(2, 6), t.saliency, 1).shape == (2, 6)
    with pytest.raises(ModelError, match=r"no part 'logit'.*it has"):
        planned(Adapter(model, output="logit"), torch.randn(2, 6), t.saliency, 1)


# --- detection and segmentation --------------------------------------------------------------------------------------


class Detector(nn.Module):
    """Gives a list with a dictionary for each image, with as many boxes as it has bright corners."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        maps = torch.relu(self.backbone(x))
        found = []
        for image in maps:
            scores = self.head(image.mean(dim=(1, 2)))
            boxes = 1 + int(image.detach().sum()) % 2
            found.append({"scores": scores[:boxes], "boxes": torch.arange(4.0 * boxes).reshape(boxes, 4)})
        return found


def best(detections):
    return torch.stack([one["scores"].max() for one in detections])


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_detections_with_a_function_of_the_list(images, t, planned, batch_size):
    torch.manual_seed(0)
    model, x = Detector().eval(), images(5)
    techniques = {
        "saliency": t.saliency,
        "cam": t.cam("backbone"),
        "auto": t.look(gradients=["auto"]),
        "ig": t.integrated(4),
        "outputs": t.outputs,
        "draws": t.look(at=lambda sample: sample.derived(2, lambda inputs, *_: inputs), outputs=True),
    }
    found = planned(model, x, techniques, best, batch_size=batch_size)
    assert not found.errors
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(best(model(leaf)).sum(), leaf)
    near(found.results["saliency"], expected)
    assert found.results["auto"].layers["auto"].name == "/relu"
    plain = model(x)
    assert len({len(one["scores"]) for one in plain}) == 2
    assert len(found.results["outputs"]) == 5
    for draw in (found.results["outputs"], *found.results["draws"].outputs):
        for one, other in zip(draw, plain, strict=True):
            near(one["scores"], other["scores"].detach())
            assert one["boxes"].equal(other["boxes"])


def test_detections_have_no_class_logits(images, t, planned):
    with pytest.raises(ModelError, match="returns a list"):
        planned(Detector().eval(), images(), t.saliency, 1)


def test_a_region_of_a_segmentation(images, t, planned):
    torch.manual_seed(0)

    class Segments(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 1)

        def forward(self, x):
            return {"out": self.head(torch.relu(self.conv(x))), "aux": self.conv(x)}

    model, x = Segments().eval(), images(4)
    masks = torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(0)) > 0.7
    leaf = x.clone().requires_grad_()
    maps = model(leaf)["out"][:, 2]
    score = torch.stack([maps[row][masks[row]].mean() for row in range(4)])
    (expected,) = torch.autograd.grad(score.sum(), leaf)
    for batch_size in (1, 3, "auto"):
        seen = planned(model, x, t.look(gradients=["input", "auto"]), Region(2, masks), batch_size=batch_size)
        near(seen.gradients["input"], expected)
        near(seen.scores, score.detach())
        assert seen.layers["auto"].name == "/relu"

    def some(sample):
        return (yield Look(at=sample[[2, 0]].derived(2, lambda inputs, *_: inputs).flattened())).scores

    near(planned(model, x, some, Region(2, masks)), score[[2, 0, 2, 0]].detach())
    with pytest.raises(TargetError, match="the output map is"):
        planned(model, x, t.saliency, Region(2, masks[:, :5]))
    whole = planned(model, x, t.scores, None)  # the class of the greatest mean
    near(whole, model(x)["out"].mean(dim=(2, 3)).amax(dim=1).detach())


def test_targets_at_layers(net, images, t, planned):
    model, x = net(), images()
    unit = pellucid.Unit("conv2", 3, (1, 2))
    seen = planned(model, x, t.look(gradients=["input", "conv1"]), unit)
    leaf = x.clone().requires_grad_()
    score = model.conv2(model.pool(model.relu1(model.bn(model.conv1(leaf)))))[:, 3, 1, 2]
    near(seen.scores, score.detach())
    near(seen.gradients["input"], torch.autograd.grad(score.sum(), leaf)[0])
    embedding = torch.randn(8, generator=torch.Generator().manual_seed(0))
    similarity = planned(model, x, t.look(gradients=["input"]), pellucid.Similarity(embedding, "/mean"))
    pooled = planned(model, x, t.activations("/mean"))["/mean"]
    near(similarity.scores, torch.cosine_similarity(pooled, embedding.expand(3, 8), dim=1))
    with pytest.raises(LayerError, match="no layer 'conv9'"):
        planned(model, x, t.saliency, pellucid.Unit("conv9", 0))


# --- the tree functions themselves -----------------------------------------------------------------------------------


def trees(rows=3):
    one, two = torch.arange(rows * 2.0).reshape(rows, 2), torch.arange(float(rows))
    return [
        one,
        (one, two),
        [one, two],
        Pair(one, two),
        {"a": one, "b": [two, None, 3]},
        Answer(one, torch.tensor(1.0), {"x": two}),
        Leaves({"a": one, "b": two}),
        torch.max(one, dim=1),
        [{"boxes": torch.ones(k, 4)} for k in range(rows)],
        [torch.ones(k + 4, 6) for k in range(rows)],
        None,
        "text",
    ]


@pytest.mark.parametrize("index", range(12))
def test_cutting_and_joining_gives_the_same(index):
    value = trees()[index]
    parts = [cut(value, start, stop, 3) for start, stop in ((0, 2), (2, 3))]
    again = joined(parts, [2, 1])
    assert type(again) is type(value)
    before, after = list(tensors_in(value)), list(tensors_in(again))
    assert len(before) == len(after)
    assert all(map(torch.equal, before, after))
    drawn = by_draw(joined([value, value], [3, 3]), 2, 6)
    if isinstance(value, list) and index > 7:
        assert [len(draw) for draw in drawn] == [3, 3]
    for one, other in zip(tensors_in(drawn), before, strict=False):
        if other.dim() and other.shape[0] == 3 and index < 8:
            assert one.shape == (2, *other.shape)
            assert one[1].equal(other)


@pytest.mark.parametrize("index", range(12))
def test_mapping_keeps_the_form(index):
    value = trees()[index]
    made = mapped(lambda tensor: tensor + 1, value)
    assert type(made) is type(value)
    for one, other in zip(tensors_in(made), tensors_in(value), strict=True):
        assert one.equal(other + 1)


def test_the_first_tensor_is_exchanged_wherever_it_occurs():
    one, two, new = torch.ones(2), torch.zeros(2), torch.full((2,), 5.0)
    value = ({"a": None, "b": one}, [two, one])
    assert first_tensor(value) is one
    made = with_first(value, one, new)
    assert made[0]["b"] is new
    assert made[1][0] is two
    assert made[1][1] is new
    assert value[0]["b"] is one
    assert first_tensor("nothing") is None


def test_outputs_of_libraries_that_forbid_update():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    value = outputs.BaseModelOutput(last_hidden_state=torch.ones(2, 3), hidden_states=(torch.zeros(2, 1),))
    made = mapped(lambda tensor: tensor + 1, value)
    assert type(made) is type(value)
    assert made.last_hidden_state.unique().tolist() == [2]
    assert made["hidden_states"][0].unique().tolist() == [1]


def test_folds_of_outputs(t, planned):
    torch.manual_seed(0)
    model, x = Returning(FORMS["dict"]).eval(), torch.randn(5, 6)
    at = {"at": lambda sample: sample.jittered(6, 0.5), "outputs": True}
    kept = planned(model, x, t.look(**at), ClassLogit(1)).outputs["logits"]
    model.form = FORMS["tuple"]
    folded = planned(model, x, t.look(**at, fold=Mean()), ClassLogit(1), batch_size=4).outputs
    near(folded[0], kept.mean(dim=0))
