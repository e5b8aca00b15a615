"""What is left after a run: nothing but the result."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import pellucid
from pellucid import api

TECHNIQUES = ["saliency", "grad_cam", "integrated_gradients", "smoothgrad", "occlusion"]


def hooks(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(part, name)) for part in model.modules() for name in names]


def test_model_and_inputs_are_freed(net, images):
    model, x = net(), images()
    references = [weakref.ref(model), weakref.ref(model.conv1), weakref.ref(x)]
    found = pellucid.explain(model, x, TECHNIQUES, 1)
    scores = pellucid.evaluate(model, x, found["saliency"])
    del model, x
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]
    assert found["saliency"].values.isfinite().all()
    assert scores is not None


def test_model_and_inputs_are_freed_after_errors(net, images):
    model, x = net(), images()
    references = [weakref.ref(model), weakref.ref(x)]
    for technique, target in (("saliency", 99), (pellucid.create("grad_cam", layer="conv9"), 1)):
        with pytest.raises(pellucid.PellucidError):
            pellucid.explain(model, x, technique, target)
    del model, x
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_no_hook_stays(net, images):
    model = net()
    before = hooks(model)
    pellucid.explain(model, images(), TECHNIQUES, 1)
    with pytest.raises(pellucid.LayerError):
        pellucid.explain(model, images(), pellucid.create("grad_cam", layer="head"), 1)
    assert hooks(model) == before


def test_no_graph_hangs_on_a_result(net, images):
    for found in pellucid.explain(net(), images(), TECHNIQUES, 1).values():
        assert not found.values.requires_grad
        assert found.values.grad_fn is None


def test_what_is_learnt_of_a_model_lives_as_long_as_the_model(net, images):
    gc.collect()
    before = len(api._learnt)
    model = net()
    pellucid.explain(model, images(), "grad_cam")
    assert len(api._learnt) == before + 1
    learnt = api._learnt[model]
    pellucid.explain(model, images(), "grad_cam")
    assert pellucid.adapt(model).cache is learnt
    del model, learnt
    gc.collect()
    assert len(api._learnt) == before


def test_what_is_learnt_is_not_taken_for_another_model(net, images):
    first = net()
    pellucid.explain(first, images(), "grad_cam")
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval()
    assert pellucid.explain(other, images(), "grad_cam").meta.layer == "1"


def test_trained_weights_have_another_hash(net, images):
    model = net()
    before = pellucid.explain(model, images(), "saliency", 1)
    with torch.no_grad():
        model.head.weight[0, 0] += 1
    after = pellucid.explain(model, images(), "saliency", 1)
    assert before.meta.model_hash != after.meta.model_hash
    assert before.meta.input_hash == after.meta.input_hash


def test_results_do_not_share_memory_with_the_users_inputs(net, images):
    x = images()
    found = pellucid.explain(net(), x, "saliency", 1)
    x.zero_()
    assert found.inputs.equal(images())


def test_many_draws_take_the_memory_of_one_batch(net, images, planned, t):
    most = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            gc.collect()
            alive = [one for one in gc.get_objects() if type(one) is torch.Tensor and one.shape[1:] == (3, 12, 12)]
            most.append(sum(len(one) for one in alive))
            return self.inner(x)

    planned(Watching().eval(), images(2), t.integrated(40), 1, batch_size=8)
    assert len(most) >= 10
    # The user's images, the sample's, the baseline, the sums, and few copies of one batch; not 80 rows.
    assert max(most[2:]) <= 60
