"""Failures stay with whoever failed, and what all share is not changed."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from pellucid import (
    Adapter,
    Attribution,
    ClassLogit,
    Explainer,
    Interrupted,
    Look,
    Mean,
    ModelError,
    Moments,
    ProtocolError,
    Seen,
    Sum,
    Technique,
    explain,
)
from pellucid.errors import Unsuitable


def near(one, two, tolerance=1e-5):
    torch.testing.assert_close(one, two, rtol=0, atol=tolerance * float(two.abs().max()))


def test_a_failing_technique_does_not_harm_the_others(net, images, t, planned):
    def before(sample):
        raise ValueError("at once")
        yield

    def breaks_a_fold(sample):
        yield Look(at=sample.jittered(4, 0.1), gradients=["input"], fold=Sum(lambda part: part.scores[:1]))

    def bad_layer(sample):
        yield Look(at=sample, gradients=["conv9"])

    def bad_target(sample):
        yield Look(at=sample, gradients=["input"], targets=[ClassLogit(99)])

    def no_dependence(sample):
        yield Look(at=sample, gradients=["bn"], targets=[Detached()])

    good = {"smooth": t.smooth(), "saliency": t.saliency, "cam": t.cam("relu2"), "ig": t.integrated()}
    bad = {
        "before": before,
        "fails": t.fails,
        "fold": breaks_a_fold,
        "layer": bad_layer,
        "target": bad_target,
        "dependence": no_dependence,
    }
    alone = planned(net(), images(), good).results
    outcome = planned(net(), images(), {**bad, **good})
    assert set(outcome.errors) == set(bad)
    for name in ("saliency", "cam", "ig"):
        near(outcome.results[name], alone[name])
    for one, other in zip(outcome.results["smooth"], alone["smooth"], strict=True):
        near(one, other)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "'mine' returned NoneType; expected an Explanation"),
        (torch.zeros(2, 3), "'mine' returned Tensor; expected an Explanation"),
        (Attribution(torch.zeros(5, 3)), "'mine' returned 5 rows for 2 examples"),
    ],
)
def test_what_is_no_explanation_of_the_examples_is_refused(made, said):
    class Mine(Explainer):
        technique = Technique("mine", "explainer", "Returns something.", "m:C")

        def explain(self, sample):
            yield Look(at=sample)
            return made

    with pytest.raises(ProtocolError, match=said):
        explain(nn.Linear(3, 2), torch.zeros(2, 3), dataclass(frozen=True, eq=False)(Mine)(), target=0)


class Detached(ClassLogit):
    """A score without a gradient."""

    def score(self, given):
        return given.logits().detach()[:, 0]


def test_a_predicted_class_is_found_although_the_look_that_would_show_it_fails(net, images, t, planned):
    def bad(sample):
        yield Look(at=sample, gradients=["head"], targets=[ClassLogit(), ClassLogit(99)])

    outcome = planned(net(), images(), {"bad": bad, "ig": t.integrated()}, batch_size=2)
    assert list(outcome.errors) == ["bad"]
    near(outcome.results["ig"], planned(net(), images(), t.integrated()))


def test_a_model_that_fails_fails_all_with_its_reason(images, t, planned):
    class Broken(nn.Module):
        def forward(self, x):
            raise IndexError("no such thing")

    outcome = planned(Broken(), images(), {"ig": t.integrated(), "saliency": t.saliency})
    assert set(outcome.errors) == {"ig", "saliency"}
    for error in outcome.errors.values():
        assert isinstance(error, ModelError)
        assert "IndexError: no such thing" in str(error)


def test_an_interruption_keeps_what_had_finished(net, images, t, planned):
    model = net()

    def interrupts(sample):
        yield Look(at=sample)
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as error:
        planned(model, images(), {"saliency": t.saliency, "stop": interrupts, "late": t.cam("relu2")}, 1)
    assert list(error.value.results) == ["saliency"]
    near(error.value.results["saliency"], planned(net(), images(), t.saliency, 1))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


# --- what a technique may not do -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sample, seen: seen.gradients["input"].mul_(2),
        lambda sample, seen: seen.activations["relu2"].zero_(),
        lambda sample, seen: seen.scores.add_(1),
        lambda sample, seen: seen.outputs.add_(1),
        lambda sample, seen: seen.gradients["input"][0].fill_(3),
        lambda sample, seen: sample.inputs.zero_(),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_changing_in_place_what_all_share_is_caught_and_harms_no_other(net, images, t, planned, spoil, again):
    def bad(sample):
        seen = yield Look(at=sample, outputs=True, activations=["relu2"], gradients=["input"])
        spoil(sample, seen)
        if again:
            yield Look(at=sample)
        return 1

    techniques = {
        "saliency": t.saliency,
        "cam": t.cam("relu2"),
        "scores": t.scores,
        "outputs": t.outputs,
        "two": lambda sample: ((yield Look(at=sample)), (yield from t.integrated(2)(sample)))[1],
    }
    outcome = planned(net(), images(), {"bad": bad, **techniques})
    assert list(outcome.errors) == ["bad"]
    assert isinstance(outcome.errors["bad"], ProtocolError)
    assert "in place" in str(outcome.errors["bad"])
    for name, technique in techniques.items():
        near(outcome.results[name], planned(net(), images(), technique))


@pytest.mark.parametrize(
    ("look", "told"),
    [
        (lambda sample: "a look", "yielded a str; expected a Look"),
        (lambda sample: Look(at=sample.inputs), "expected a Sample"),
        (lambda sample: Look(at=sample, fold=Mean()), "no derived axis"),
        (lambda sample: Look(at=sample.jittered(2, 0.1), fold=torch.mean), "expected Mean, Moments or Sum"),
        (lambda sample: Look(at=sample, activations="conv1"), "not one string"),
        (lambda sample: Look(at=sample, activations=["input"]), "sample.inputs"),
        (lambda sample: Look(at=sample, targets=[]), "empty list of targets"),
        (lambda sample: Look(at=sample[[]]), "without examples"),
        (lambda sample: Look(at=sample, targets=[ClassLogit(torch.tensor([1]))]), r"expected \(3, "),
        (lambda sample: Look(at=sample.jittered(2, 0.1), fold=Mean(torch.ones(3))), "weights of shape"),
        (lambda sample: Look(at=sample.jittered(2, 0.1), outputs=True, fold=Sum(lambda part: 1.0)), "a row each"),
    ],
)
def test_looks_that_cannot_be_served(net, images, t, planned, look, told):
    def bad(sample):
        yield look(sample)

    outcome = planned(net(), images(), {"bad": bad, "good": t.saliency}, 1)
    assert list(outcome.errors) == ["bad"]
    assert re.search(told, str(outcome.errors["bad"]))
    assert "good" in outcome.results


def test_a_technique_asks_only_what_it_declared(net, images, t, planned):
    with pytest.raises(ProtocolError, match=r"asks for \['gradients'\], which its record does not declare"):
        planned(net(), images(), t.saliency, uses=frozenset({"activations"}))
    planned(net(), images(), t.outputs, uses=frozenset())  # outputs are always there


def test_what_the_model_does_not_offer(net, images, t, planned):
    adapter = Adapter(net(), offers=frozenset({"outputs"}))
    planned(adapter, images(), t.outputs)
    with pytest.raises(Unsuitable, match=r"needs \['gradients'\].* offers \['outputs'\]"):
        planned(adapter, images(), t.saliency)


def test_moments_of_several_targets(net, images, t, planned):
    targets = [ClassLogit(0), ClassLogit(3)]
    ask = {"at": lambda s: s.jittered(4, 0.1), "gradients": ["input"]}
    seen = planned(net(), images(), t.look(**ask, targets=targets, fold=Moments()))
    assert seen.gradients["input"].shape == seen.spread["gradients"]["input"].shape == (2, 3, 3, 12, 12)
    for index, target in enumerate((0, 3)):
        alone = planned(net(), images(), t.look(**ask), target).gradients["input"]
        near(seen.gradients["input"][index], alone.mean(dim=0))
        near(seen.spread["gradients"]["input"][index], alone.var(dim=0, unbiased=False), 1e-4)


def test_what_the_look_did_not_ask_for_is_named():
    seen = Seen(torch.zeros(1), gradients={"input": torch.zeros(1, 3)})
    with pytest.raises(ProtocolError, match="did not ask for 'auto' here; it asked for 'input'"):
        seen.gradients["auto"]
    with pytest.raises(ProtocolError, match="it asked for nothing"):
        seen.maps("auto")
    assert seen.gradients.get("auto") is None
