"""The error of the nearest prototype: by hand, in a layer, and what it refuses."""

from itertools import permutations

import pytest
import torch
from torch import nn

import pellucid
from pellucid import Attribution, Exemplars, InputError
from pellucid_evaluation.nearest_prototype_error import NearestPrototypeError

DATA = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [9.0, 9.0]])
CLASSES = torch.tensor([0, 1, 2, 1])
HELD = torch.tensor([[0.5, 0.1], [3.0, 0.0], [0.0, 3.9], [8.0, 8.0], [0.1, 2.2]])


def chosen(*places, kind=None):
    indices = torch.tensor([places])
    return Exemplars(torch.ones(indices.shape), indices, kind=kind or ("prototype",) * len(places))


def scored(explanation, labels, **parameters):
    metric = NearestPrototypeError(DATA, CLASSES, torch.tensor(labels), **parameters)
    return pellucid.evaluate(None, HELD, explanation, metric, controls=False)


def test_the_nearest_prototypes_class_counts():
    scores = scored(chosen(0, 1, 2), [0, 1, 2, 1, 0])
    assert scores.values.tolist() == [[0, 0, 0, 0, 1]]
    assert scores.rows[0].better == "lower"
    # Without the third prototype, two more are nearest to the first.
    assert scored(chosen(0, 1), [0, 1, 2, 1, 0]).values.tolist() == [[0, 0, 1, 0, 0]]


def test_as_many_random_examples_stand_beside_prototypes():
    labels = torch.tensor([0, 1, 2, 1, 0])
    metric = NearestPrototypeError(DATA, CLASSES, labels)
    found = {}
    for seed in range(40):
        scores = pellucid.evaluate(None, HELD, {"ours": chosen(0, 1, 2)}, metric, seed=seed)
        assert [(row.explanation, row.control) for row in scores.rows] == [("ours", False), ("random", True)]
        found[seed] = scores.values[1].tolist()
    again = pellucid.evaluate(None, HELD, chosen(0, 1, 2), metric, seed=3).values[1].tolist()
    assert again == found[3]
    threes = permutations(range(len(DATA)), 3)
    possible = [scored(chosen(*three), labels.tolist()).values[0].tolist() for three in threes]
    assert all(one in possible for one in found.values())
    assert len({tuple(one) for one in found.values()}) > 1


def test_criticisms_and_empty_places_do_not_count():
    found = chosen(0, -1, 2, 1, kind=("prototype", "prototype", "prototype", "criticism"))
    assert scored(found, [0, 1, 2, 1, 2]).values.tolist() == [[0, 1, 0, 1, 0]]


def test_of_equal_prototypes_the_first_counts():
    metric = NearestPrototypeError(DATA[[0, 0]], torch.tensor([3, 4]), torch.tensor([3]))
    assert float(pellucid.evaluate(None, HELD[:1], chosen(0, 1), metric, controls=False).values) == 0
    assert float(pellucid.evaluate(None, HELD[:1], chosen(1, 0), metric, controls=False).values) == 1


def test_in_a_layer_the_model_decides_what_is_near():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1.0]]))
    metric = NearestPrototypeError(DATA, CLASSES, torch.tensor([0, 0, 2, 1, 2]), layer="0")
    assert pellucid.evaluate(model, HELD, chosen(0, 2, 3), metric, controls=False).values.tolist() == [[0, 0, 0, 0, 0]]
    assert pellucid.evaluate(model, HELD, chosen(0, 2), metric, controls=False).values.tolist() == [[0, 0, 0, 1, 0]]


def test_data_that_do_not_fit_are_refused():
    for explanation, labels, message in (
        (chosen(0, 1), [0, 1], r"labels are .* expected integers \(5,\)"),
        (chosen(0, 7), [0] * 5, "the last at 7"),
        (chosen(-1, -1), [0] * 5, "there are 0 prototypes"),
        (chosen(0, 1, kind="similar"), [0] * 5, "no exemplar is a 'prototype'"),
    ):
        with pytest.raises(InputError, match=message):
            scored(explanation, labels)
    metric = NearestPrototypeError(DATA, CLASSES, torch.zeros(5).long())
    with pytest.raises(InputError, match="expected Exemplars"):
        pellucid.evaluate(nn.Linear(2, 2), HELD, Attribution(HELD), metric, target=0, controls=False)
    with pytest.raises(InputError, match="data_labels"):
        pellucid.evaluate(None, HELD, chosen(0), NearestPrototypeError(DATA, CLASSES.float(), torch.zeros(5).long()))
    with pytest.raises(InputError, match="of the inputs' form"):
        pellucid.evaluate(None, HELD, chosen(0), NearestPrototypeError(DATA[:, :1], CLASSES, torch.zeros(5).long()))
