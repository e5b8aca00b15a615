"""The perturbation family and its evaluation on models that are no networks."""

import pytest
import torch

import pellucid

NAMES = ["occlusion", "feature_ablation", pellucid.create("rise", n_masks=600)]


@pytest.mark.parametrize("technique", NAMES, ids=["occlusion", "feature_ablation", "rise"])
def test_an_estimator_of_scikit_learn_is_explained_and_the_explanation_scored(technique):
    from sklearn.ensemble import RandomForestClassifier

    generator = torch.Generator().manual_seed(0)
    table = torch.randn(400, 6, generator=generator)
    labels = (table[:, 2] > 0).long()
    forest = RandomForestClassifier(20, random_state=0).fit(table.numpy(), labels.numpy())
    telling = table[table[:, 2].abs() > 1][:20]
    found = pellucid.explain(forest, telling, technique)
    assert (found.values.argmax(dim=1) == 2).float().mean() > 0.9
    scores = pellucid.evaluate(forest, telling, {"mine": found}, ["pixel_flipping"], controls=["random"])
    ranking = scores.ranking()["pixel_flipping"]
    assert ranking[0].explanation == "mine"
    assert ranking[0].mean > ranking[1].mean + 0.05


def test_gradients_are_not_asked_of_a_function_of_arrays():
    def dark(images):
        return torch.stack([images[:, 0, 4:8, 4:8].mean(dim=(1, 2)), torch.zeros(len(images))], dim=1).numpy()

    black_box = pellucid.adapt(dark)
    images = torch.rand(2, 1, 12, 12)
    found = pellucid.explain(black_box, images, pellucid.create("occlusion", window=4, stride=4), target=0)
    expected = torch.zeros(2, 12, 12)
    expected[:, 4:8, 4:8] = images[:, 0, 4:8, 4:8].mean(dim=(1, 2))[:, None, None]
    torch.testing.assert_close(found.heatmap(), expected)
