"""Bad input to the verbs: one clear message each, and model and data unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pellucid
from pellucid import (
    InputError,
    Interrupted,
    LayerError,
    ModelError,
    ParameterError,
    ProtocolError,
    TargetError,
    TechniqueFailed,
    UnknownTechnique,
    Unsuitable,
    create,
)

NAN = torch.randn(3, 3, 12, 12)
NAN[1, 0, 0, 0] = torch.nan

EXPLAIN = {
    # technique
    "unknown technique": ({"techniques": "grad_camm"}, UnknownTechnique, r"grad_camm.*Did you mean 'grad_cam"),
    "unknown among several": ({"techniques": ["saliency", "grad_camm"]}, UnknownTechnique, "Did you mean"),
    "no technique": ({"techniques": []}, ParameterError, "no technique was given"),
    "an evaluator": ({"techniques": "pixel_flipping"}, ParameterError, "no explainer"),
    "a class": ({"techniques": nn.ReLU}, ParameterError, "ReLU is a class; give an instance"),
    "a number": ({"techniques": 3}, ParameterError, "no explainer"),
    # layer
    "unknown layer": (
        {"techniques": create("grad_cam", layer="relu3")},
        LayerError,
        r"no layer 'relu3'.*Did you mean 'relu",
    ),
    "a layer without maps": ({"techniques": create("grad_cam", layer="head")}, LayerError, "no map of positions"),
    "a layer that never runs": ({"techniques": create("grad_cam", layer="idle")}, LayerError, "never runs"),
    # inputs
    "a size that the model does not take, by rules": (
        {"techniques": "lrp", "inputs": torch.randn(3, 5, 12, 12)},
        ModelError,
        r"failed on inputs of shape \(3, 5, 12, 12\)",
    ),
    "one photo without the axis of examples": ({"inputs": torch.randn(3, 12, 12)}, InputError, r"inputs\[None\]"),
    "too many axes": (
        {"inputs": torch.randn(1, 2, 3, 12, 12)},
        ModelError,
        r"failed on inputs of shape \(1, 2, 3, 12, 12\)",
    ),
    "other channels": ({"inputs": torch.randn(2, 4, 12, 12)}, ModelError, "4 channels"),
    "no example": ({"inputs": torch.randn(0, 3, 12, 12)}, InputError, "at least one example"),
    "one number": ({"inputs": torch.tensor(1.0)}, InputError, "at least one example"),
    "NaN": ({"inputs": NAN}, InputError, r"not finite .*1 examples: \[1\]"),
    "infinity": ({"inputs": NAN.nan_to_num(nan=torch.inf)}, InputError, "not finite"),
    "bytes": ({"inputs": torch.zeros(2, 3, 12, 12, dtype=torch.uint8)}, InputError, "scaled and normalised"),
    "None": ({"inputs": None}, InputError, "inputs are None"),
    "text": ({"inputs": "cat.jpg"}, InputError, "reads no texts; pictures are read by pellucid.load_images"),
    "ragged lists": ({"inputs": [[1.0], [1.0, 2.0]]}, InputError, "is no tensor"),
    # target
    "a class too many": ({"target": 4}, TargetError, "target 4 is out of range; the model has 4 classes, 0 to 3"),
    "a class too few": ({"target": -5}, TargetError, "target -5 is out of range"),
    "one of the classes": ({"target": [0, 1, 9]}, TargetError, "target 9 is out of range"),
    "not as many": ({"target": [0, 1]}, TargetError, r"shape \(2,\); expected \(3,\)"),
    "a fraction": ({"target": 1.5}, TargetError, "expected integer class indices"),
    "fractions": ({"target": torch.tensor([0.0, 1.0, 2.0])}, TargetError, "expected integer class indices"),
    "a bool": ({"target": True}, TargetError, "is a bool"),
    "bools": ({"target": [True, False, True]}, TargetError, "torch.bool"),
    "a name without categories": ({"target": "cat"}, TargetError, "names are not known; give the class index"),
    "a sum": ({"target": lambda output: output.sum()}, TargetError, "before summing"),
    "a function that returns no tensor": ({"target": lambda output: 1.0}, TargetError, "returned float"),
    "a target for others": ({"target": pellucid.Loss(torch.tensor([0, 1]))}, TargetError, "the labels have shape"),
    # the rest
    "batch size 0": ({"batch_size": 0}, ParameterError, "batch_size=0: expected 'auto' or an integer of at least 1"),
    "batch size -1": ({"batch_size": -1}, ParameterError, "batch_size=-1"),
    "batch size 2.5": ({"batch_size": 2.5}, ParameterError, "batch_size=2.5"),
    "batch size word": ({"batch_size": "big"}, ParameterError, "batch_size='big'"),
    "batch size bool": ({"batch_size": True}, ParameterError, "batch_size=True"),
    "seed -1": ({"seed": -1}, ParameterError, "seed=-1: expected an integer"),
    "seed 0.5": ({"seed": 0.5}, ParameterError, "seed=0.5"),
    "seed too large": ({"seed": 2**64}, ParameterError, "seed=18446744073709551616"),
    "seed bool": ({"seed": True}, ParameterError, "seed=True"),
    "no such device": ({"device": "gpu"}, ParameterError, "device='gpu' is not there"),
    # the model
    "a class of a model": ({"model": nn.Sequential(nn.Linear(432, 3)).__class__}, ModelError, "is a class"),
    "reference": ({"model": "torchvision:resnet18"}, ModelError, "load_model\\('torchvision:resnet18'\\)"),
    "no model": ({"model": 3}, ModelError, "nothing can adapt a model of type int"),
    "an empty module": ({"model": nn.Module()}, ModelError, "no `forward`"),
}


def model_with_idle(net):
    model = net().train()
    model.idle = nn.ReLU()
    return model


@pytest.mark.parametrize("case", EXPLAIN)
def test_explain(net, images, case):
    options, kind, told = EXPLAIN[case]
    given = {"model": model_with_idle(net), "inputs": images(), "techniques": "saliency", **options}
    model, inputs = given["model"], given["inputs"]
    state = {n: v.clone() for n, v in model.state_dict().items()} if isinstance(model, nn.Module) else {}
    values = inputs.clone() if isinstance(inputs, torch.Tensor) else inputs
    with pytest.raises(kind, match=told) as error:
        pellucid.explain(**given)
    assert len(str(error.value)) > 10
    if state:
        assert model.training
        assert all(value.equal(state[name]) for name, value in model.state_dict().items())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any(part._forward_hooks for part in model.modules())
    if isinstance(inputs, torch.Tensor):
        torch.testing.assert_close(inputs, values, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("case", [name for name, (options, *_) in EXPLAIN.items() if "techniques" not in options])
def test_several_techniques_fail_with_the_same_message(net, images, case):
    options, kind, told = EXPLAIN[case]
    given = {
        "model": model_with_idle(net),
        "inputs": images(),
        "techniques": ["saliency", "input_x_gradient"],
        **options,
    }
    with pytest.raises(kind, match=told):
        pellucid.explain(**given)


@pytest.mark.parametrize(
    ("changed", "kind", "told"),
    [
        ({"metrics": "pixel_flip"}, UnknownTechnique, "Did you mean 'pixel_flipping'"),
        ({"metrics": "saliency"}, ParameterError, "no evaluator"),
        ({"metrics": []}, ParameterError, "no technique was given"),
        ({"explanations": {}}, ParameterError, "no explanation to evaluate"),
        ({"explanations": {"a": torch.ones(3)}}, ParameterError, "'a' is of type Tensor; expected an explanation"),
        ({"explanations": 3}, ParameterError, "expected an explanation"),
        ({"inputs": None}, InputError, "inputs are None"),
        ({"inputs": torch.randn(2, 3, 12, 12)}, (TargetError, InputError, ParameterError), "2"),
        ({"inputs": NAN}, InputError, "not finite"),
        ({"target": 9}, TargetError, "target 9 is out of range"),
        ({"batch_size": 0}, ParameterError, "batch_size=0"),
        ({"seed": -1}, ParameterError, "seed=-1"),
        ({"controls": ["no_such_control"]}, UnknownTechnique, "no_such_control"),
    ],
)
def test_evaluate(net, images, changed, kind, told):
    model = net()
    found = pellucid.explain(model, images(), ["saliency"], 1)
    given = {"model": model, "inputs": images(), "explanations": found, "metrics": "pixel_flipping", **changed}
    with pytest.raises(kind, match=told):
        pellucid.evaluate(**given)


def test_evaluate_needs_one_target(net, images):
    model = net()
    one = pellucid.explain(model, images(), "saliency", 1)
    other = pellucid.explain(model, images(), "input_x_gradient", 2)
    with pytest.raises(TargetError, match="other classes than the first"):
        pellucid.evaluate(model, images(), {"one": one, "other": other})
    custom = pellucid.explain(model, images(), "saliency", lambda output: output[:, 0])
    with pytest.raises(TargetError, match=r"give evaluate\(target=\.\.\.\)"):
        pellucid.evaluate(model, images(), custom)


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"outptu": "logits"}, ParameterError, "outptu"),
        ({"mean": 3}, ParameterError, "mean"),
    ],
)
def test_adapt(net, options, kind, told):
    with pytest.raises(kind, match=told):
        pellucid.adapt(net(), **options)


def test_an_adapter_is_not_adapted_again(net):
    adapter = pellucid.adapt(net())
    assert pellucid.adapt(adapter) is adapter
    with pytest.raises(ModelError, match="adapted already"):
        pellucid.adapt(adapter, output="logits")


def test_names_of_classes(net, images):
    adapter = pellucid.adapt(net(), categories=["cat", "dog", "bird", "fish"])
    by_name = pellucid.explain(adapter, images(), "saliency", "Dog")
    assert by_name.values.equal(pellucid.explain(adapter, images(), "saliency", 1).values)
    with pytest.raises(TargetError, match=r"no class 'dgo'\. Did you mean 'dog'"):
        pellucid.explain(adapter, images(), "saliency", "dgo")


def test_what_a_technique_needs_and_the_model_does_not_offer(images):
    def black_box(x):
        return x.flatten(1)[:, :4]

    with pytest.raises(Unsuitable, match=r"'saliency' needs \['gradients'\].*works_with=model"):
        pellucid.explain(black_box, images(), "saliency", 1)
    assert pellucid.explain(black_box, images(), "occlusion", 1).values.shape[0] == 3


def test_what_finished_is_in_the_exception(net, images):
    techniques = {"good": "saliency", "bad": create("grad_cam", layer="conv9")}
    with pytest.raises(
        TechniqueFailed, match=r"1 of 2 techniques failed \(bad: LayerError: the model has no layer"
    ) as error:
        pellucid.explain(net(), images(), techniques, 1)
    assert list(error.value.results) == ["good"]
    assert error.value.results["good"].meta.technique == "saliency"
    assert isinstance(error.value.errors["bad"], LayerError)


class Stopping(nn.Module):
    """Is interrupted in its third pass."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return self.inner(x)


def test_what_finished_before_an_interruption_is_whole(net, images, tmp_path):
    model = Stopping(net()).train()  # after the first round
    steps = create("integrated_gradients", n_steps=2, tolerance=1e-9, max_steps=100)
    with pytest.raises(Interrupted, match="1 finished") as error:
        pellucid.explain(model, images(), {"first": "saliency", "second": steps}, 1)
    kept = error.value.results["first"]
    assert kept.meta.technique == "saliency"
    assert kept.target.classes.tolist() == [1, 1, 1]
    kept.save(tmp_path / "kept")
    assert model.training


def test_what_was_served_before_an_interruption_in_the_same_round_is_kept(net, images):
    techniques = {"long": create("smoothgrad", n_samples=9), "short": "saliency"}
    with pytest.raises(Interrupted, match="1 finished") as error:
        pellucid.explain(Stopping(net()), images(), techniques, 1, batch_size=3)
    wanted = pellucid.explain(net(), images(), "saliency", 1).values
    torch.testing.assert_close(error.value.results["short"].values, wanted)


@dataclass(frozen=True, eq=False)
class Plain(pellucid.Explainer):
    """Does its work without a pass, and so without `yield`."""

    work: Callable[[pellucid.Sample], Any]

    def explain(self, sample):
        return self.work(sample)


def test_a_technique_without_passes_fails_alone(net, images):
    def fails(sample):
        raise RuntimeError("no luck")

    wanted = pellucid.explain(net(), images(), "saliency", 1).values
    for work, expected in ((fails, RuntimeError), (lambda sample: sample.inputs.zero_(), ProtocolError)):
        with pytest.raises(TechniqueFailed) as error:
            pellucid.explain(net(), images(), {"bad": Plain(work), "good": "saliency"}, 1)
        assert isinstance(error.value.errors["bad"], expected)
        torch.testing.assert_close(error.value.results["good"].values, wanted)


def test_numpy_arrays_are_taken(net, images):
    found = pellucid.explain(net(), images().numpy(), "saliency", np.array([1, 1, 1]))
    assert found.values.equal(pellucid.explain(net(), images(), "saliency", 1).values)


def test_double_inputs_are_cast_with_a_note(net, images):
    found = pellucid.explain(net(), images(dtype=torch.float64), "saliency", 1)
    assert any("cast from float64 to the model's float32" in note for note in found.meta.notes)
