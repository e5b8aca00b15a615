"""Influence, exemplars, concepts, syntheses, surrogates, projections."""

from __future__ import annotations

import pytest
import torch

from pellucid.errors import InputError
from pellucid.results import (
    Concepts,
    Exemplars,
    Influence,
    Meta,
    Node,
    Projection,
    Surrogate,
    Synthesis,
    TargetRecord,
    draw,
)
from pellucid.results.trees import layout

PHOTOS = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_influence_names_helpers_and_opponents():
    result = Influence(torch.tensor([[1.0, -4.0, 3.0, 0.0], [0.0, 2.0, -1.0, 5.0]]))
    assert result.top(0, 2).places.tolist() == [2, 0]
    assert result.top(0, 2).values.tolist() == [3.0, 1.0]
    assert result.opponents(0, 2).places.tolist() == [1, 3]
    assert result.top(slice(None), 1).places.tolist() == [[2], [3]]
    assert result[1].top(0, 1).places.tolist() == [3]
    lines = result.to_dataframe()
    assert lines[(lines["query"] == 1) & (lines["train"] == 2)].value.item() == -1.0
    assert repr(result) == "Influence(2 queries x 4 training examples)"
    partly = Influence(torch.tensor([[torch.nan, -4.0, 3.0, torch.nan]]))  # some examples were not left out
    assert partly.top(0, 3).places.tolist() == [2, 1, 0]
    assert partly.opponents(0, 3).places.tolist() == [1, 2, 0]


@pytest.mark.parametrize("name", ["self_influence", "train_labels", "train"])
def test_influence_is_of_as_many_training_examples_as_the_rest(name):
    with pytest.raises(InputError, match=f"{name} is of 3 training examples; the influence of 4"):
        Influence(torch.rand(2, 4), **{name: torch.rand(3)})


def test_influence_is_drawn_with_photos_and_without():
    result = Influence(
        torch.randn(2, 6),
        train=PHOTOS,
        inputs=PHOTOS[:2],
        train_labels=torch.arange(6),
        target=TargetRecord("predicted", torch.tensor([0, 1])),
        meta=Meta(categories=("cat", "dog")),
    )
    figure = result.plot(k=2)
    assert len(figure.axes) == 2 * 5
    assert figure.axes[0].get_title() == "cat"
    assert draw.png(figure)
    assert draw.png(Influence(torch.randn(2, 6)).plot())
    assert draw.png(result.plot([1], k=20))


def test_exemplars_are_found_by_kind_and_in_the_callers_order():
    kind = ("prototype", "prototype", "criticism")
    result = Exemplars(torch.tensor([[0.5, 0.3, 0.9]]), torch.tensor([[4, 2, -1]]), kind=kind, examples=PHOTOS)
    assert result.of("prototype").tolist() == [[4, 2]]
    assert result.of("criticism").tolist() == [[-1]]
    assert len(result.to_dataframe()) == 2
    with pytest.raises(InputError, match="no exemplar is a 'centroid'; there are criticism, prototype"):
        result.of("centroid")
    assert repr(result).startswith("Exemplars(prototype and criticism, 1 x 3")
    assert [ax.get_title() for ax in result.plot().axes] == ["prototype 4", "prototype 2", ""]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"indices": torch.zeros(2, 2, dtype=torch.long)}, "integers"),
        ({"indices": torch.zeros(2, 3)}, "integers"),
        ({"kind": ("a", "b")}, "2 kinds were given for 3 columns"),
        ({"crops": torch.rand(2, 2, 3, 4, 4)}, "crops"),
        ({"examples": PHOTOS[:1], "indices": torch.ones(2, 3, dtype=torch.long)}, "example 1 was chosen; there are 1"),
    ],
)
def test_exemplars_that_do_not_fit(options, match):
    given = {"values": torch.rand(2, 3), "indices": torch.zeros(2, 3, dtype=torch.long), **options}
    with pytest.raises(InputError, match=match):
        Exemplars(**given)


def test_similar_examples_stand_beside_the_input_and_maximal_ones_are_crops():
    values, indices = torch.rand(2, 3), torch.randint(0, 6, (2, 3))
    similar = Exemplars(values, indices, kind="similar", examples=PHOTOS, inputs=PHOTOS[:2])
    assert len(similar.plot().axes) == 2 * 4
    maximal = Exemplars(values, indices, kind="maximal", crops=torch.rand(2, 3, 3, 4, 4), names=("a", "b"))
    assert [ax.get_ylabel() for ax in maximal.plot().axes if ax.get_ylabel()] == ["a", "b"]
    assert len(maximal.plot(k=1).axes) == 2
    assert draw.png(Exemplars(values, indices).plot())


def test_concepts_are_a_table_with_their_statistics():
    result = Concepts(
        torch.tensor([[0.9, 0.4]]),
        ("stripes", "dots"),
        rows=("zebra",),
        p_values=torch.tensor([[0.001, 0.4]]),
        significant=torch.tensor([[True, False]]),
        control=torch.tensor([[0.5, 0.5]]),
        patches=(PHOTOS[:3], PHOTOS[3:5]),
    )
    lines = result.to_dataframe()
    assert lines["row"].tolist() == ["zebra", "zebra"]
    assert lines["significant"].tolist() == [True, False]
    assert "spread" not in lines
    figure = result.plot()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["stripes", "dots"]
    assert draw.png(figure)
    with pytest.raises(InputError, match="do not fit 1 concepts"):
        Concepts(torch.rand(1, 2), ("stripes",))
    with pytest.raises(InputError, match="p_values has shape"):
        Concepts(torch.rand(1, 2), ("a", "b"), p_values=torch.rand(1, 3))
    with pytest.raises(InputError, match="vectors is of 3 concepts"):
        Concepts(torch.rand(1, 2), ("a", "b"), vectors=torch.rand(3, 5))


def test_syntheses_are_drawn_above_their_objective():
    result = Synthesis(PHOTOS[:2], trace=torch.rand(2, 9), names=("unit 3", "unit 4"), objective="logit")
    figure = result.plot()
    assert len(figure.axes) == 4
    assert figure.axes[0].get_title() == "unit 3"
    assert len(Synthesis(PHOTOS[:2], inputs=PHOTOS[:2], compare=True).plot().axes) == 4
    assert draw.png(Synthesis(torch.rand(2, 7)).plot())
    with pytest.raises(InputError, match="expected \\(B, steps\\)"):
        Synthesis(PHOTOS[:2], trace=torch.rand(2))


TREE = (
    Node("a <= 1", (1, 2), ("yes", "no"), 10),
    Node("b <= 2", (3, 4)),
    Node("x"),
    Node("y"),
    Node("z"),
)


def test_parents_stand_over_the_middle_of_their_children_and_leaves_apart():
    places = layout(TREE)
    assert [y for _, y in places] == [0, 1, 1, 2, 2]
    assert places[1][0] == (places[3][0] + places[4][0]) / 2
    assert places[0][0] == (places[1][0] + places[2][0]) / 2
    assert len(set(places)) == len(TREE)


def test_graphs_with_shared_nodes_and_cycles_have_a_place_for_each():
    graph = (Node("a", (1, 2)), Node("b", (3,)), Node("c", (3,)), Node("d", (0,)), Node("alone"))
    places = layout(graph)
    assert len(set(places)) == 5
    assert draw.png(Surrogate(torch.rand(2, 1), nodes=graph).plot())
    deep = tuple(Node(str(place), (place + 1,) if place < 2000 else ()) for place in range(2001))
    assert layout(deep)[-1] == (0.0, 2000.0)


def test_surrogates_are_read_and_drawn():
    result = Surrogate(
        torch.rand(4, 2), nodes=TREE, description="a tree", rules=("if a <= 1:", "  x"), fidelity={"R2": 0.934}
    )
    assert result.text() == "a tree\nR2: 0.934\nif a <= 1:\n  x"
    assert result.to_dataframe().text.tolist() == ["a <= 1", "b <= 2", "x", "y", "z"]
    assert draw.png(result.plot())
    linear = Surrogate(torch.rand(4, 2), coefficients=torch.randn(2, 3), features=("a", "b", "c"))
    assert len(linear.plot().axes) == 2
    assert len(linear.plot(1).axes) == 1
    assert list(linear.to_dataframe()) == ["a", "b", "c"]
    with pytest.raises(InputError, match="output 2 does not exist; there are 2"):
        linear.plot(2)
    black = Surrogate(torch.rand(4, 1), outputs=torch.rand(4, 1), description="a forest")
    assert list(black.to_dataframe()) == ["surrogate 0", "model 0"]
    assert draw.png(black.plot())
    assert draw.png(Surrogate(torch.rand(4, 1)).plot())


def test_surrogates_that_do_not_fit():
    with pytest.raises(InputError, match="node 0 leads to node 7; there are 1"):
        Surrogate(torch.rand(1, 1), nodes=(Node("a", (7,)),))
    with pytest.raises(InputError, match="node 0 has 1 children and 2 labels"):
        Surrogate(torch.rand(1, 1), nodes=(Node("a", (1,), ("x", "y")), Node("b")))
    with pytest.raises(InputError, match="coefficients"):
        Surrogate(torch.rand(1, 1), coefficients=torch.rand(1, 3), features=("a",))


def test_projections_slice_points_at_all_times():
    paths = torch.arange(24.0).view(3, 4, 2)
    result = Projection(paths, names=("a", "b", "c", "d"), labels=torch.arange(4), times=torch.tensor([0, 10, 100]))
    assert len(result) == 4
    picked = result[[2, 0]]
    assert torch.equal(picked.values, paths[:, [2, 0]])
    assert picked.names == ("c", "a")
    assert picked.labels.tolist() == [2, 0]
    assert picked.times.tolist() == [0, 10, 100]
    lines = result.to_dataframe()
    assert len(lines) == 12
    assert lines[(lines["time"] == 100) & (lines["name"] == "b")]["axis 2"].item() == paths[2, 1, 1]
    assert len(result.frames) == 3
    assert Projection(paths[0]).to_dataframe().columns.tolist() == ["point", "axis 1", "axis 2"]


@pytest.mark.parametrize("shape", [(5, 1), (5, 2), (5, 4), (1, 5, 2), (3, 5, 2), (3, 5, 1), (0, 2), (600, 2)])
def test_projections_of_any_shape_are_drawn(shape):
    count = shape[-2]
    result = Projection(
        torch.randn(shape),
        labels=torch.arange(count) % 3,
        explained=torch.rand(shape[-1]),
        meta=Meta(technique="pca", categories=("cat", "dog")),
    )
    assert draw.png(result.plot())
    assert draw.png(Projection(torch.full(shape, torch.nan)).plot())


def test_axes_of_a_projection():
    result = Projection(torch.randn(5, 3), explained=torch.tensor([0.6, 0.3]), meta=Meta(categories=("cat",)))
    figure = result.plot((2, 0))
    assert figure.axes[0].get_xlabel() == "axis 3"
    assert figure.axes[0].get_ylabel() == "axis 1 (60%)"
    with pytest.raises(InputError, match="axis 3 does not exist; there are 3"):
        result.plot((0, 3))
    with pytest.raises(InputError, match=r"expected \(n, d\)"):
        Projection(torch.rand(1, 2, 3, 4))
    with pytest.raises(InputError, match="times"):
        Projection(torch.rand(3, 4, 2), times=torch.arange(4))
