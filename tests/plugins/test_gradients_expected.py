"""Expected gradients: closed forms, completeness in expectation, references, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pellucid


class Bent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x)))


def points(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_of_a_linear_model_it_is_exact_at_any_number_of_draws():
    torch.manual_seed(0)
    model, x, references = nn.Linear(5, 2).double(), points(3), points(4, seed=2)
    # Eight draws deal each of the four references out twice, so that their mean is met.
    technique = pellucid.create("expected_gradients", baselines=references, n_samples=8)
    values = pellucid.explain(model, x, technique, target=1).values
    torch.testing.assert_close(values, (x - references.mean(0)) * model.weight[1].detach())


def test_it_comes_near_the_mean_of_integrated_gradients_within_its_error():
    model, x, references = Bent().double(), points(3), points(6, seed=2)
    truth = torch.stack(
        [
            pellucid.explain(model, x, pellucid.create("integrated_gradients", baselines=row), target=0).values
            for row in references
        ]
    ).mean(0)
    technique = pellucid.create("expected_gradients", baselines=references, n_samples=600)
    done = pellucid.explain(model, x, technique, target=0)
    share = (done.values - truth).norm(dim=1) / done.values.norm(dim=1)
    check = done.checks.named("monte_carlo_error")
    assert check.passed
    assert all(off < 3 * error for off, error in zip(share.tolist(), check.each, strict=True))
    gain = (model(x)[:, 0] - model(references)[:, 0].mean()).detach()
    torch.testing.assert_close(done.values.sum(1), gain, rtol=0, atol=0.05)


def test_it_equals_a_plain_loop_over_its_own_draws():
    model, x = Bent().double(), points(3)
    technique = pellucid.create("expected_gradients", baselines=0.5, n_samples=6)
    generator = pellucid.Sample(x, pellucid.ClassLogit(0)).generator("expected_gradients")
    places = (torch.randperm(6, generator=generator) + torch.rand(6, generator=generator)) / 6
    assert sorted((places * 6).int().tolist()) == list(range(6))
    draws = []
    for place in places.double():
        here = (0.5 + place * (x - 0.5)).requires_grad_(True)
        draws.append((x - 0.5) * torch.autograd.grad(model(here)[:, 0].sum(), here)[0])
    values = torch.stack(draws)
    done = pellucid.explain(model, x, technique, target=0)
    torch.testing.assert_close(done.values, values.mean(0), rtol=1e-6, atol=1e-9)
    error = (values.std(0) / 6**0.5).norm(dim=1) / values.mean(0).norm(dim=1)
    assert done.checks.named("monte_carlo_error").each == pytest.approx(error.tolist(), rel=1e-5)


def test_without_references_the_other_examples_of_the_batch_serve():
    torch.manual_seed(0)
    model, x = nn.Linear(5, 2).double(), points(4)
    # Three others, dealt out equally by six draws.
    values = pellucid.explain(model, x, pellucid.create("expected_gradients", n_samples=6), target=0).values
    others = torch.stack([x[[k for k in range(4) if k != own]].mean(0) for own in range(4)])
    torch.testing.assert_close(values, (x - others) * model.weight[0].detach())


def test_one_example_without_references_is_refused():
    with pytest.raises(pellucid.InputError, match="reference data"):
        pellucid.explain(Bent().double(), points(1), "expected_gradients")


def test_with_references_the_batch_does_not_matter_and_the_seed_does():
    model, x = Bent().double(), points(4)
    technique = pellucid.create("expected_gradients", baselines=points(3, seed=5), n_samples=7)
    together, again, other = (pellucid.explain(model, x, technique, target=0, seed=s).values for s in (0, 0, 1))
    assert torch.equal(together, again)
    assert not torch.allclose(together, other)
    alone = pellucid.explain(model, x[2:3], technique, target=0).values
    torch.testing.assert_close(alone, together[2:3])


def test_several_inputs_have_references_by_name():
    class Two(nn.Module):
        def forward(self, left, right):
            return torch.stack([2 * left.sum(1) + right.sum((1, 2)), left.sum(1)], dim=1)

    inputs = {"left": torch.rand(2, 3), "right": torch.rand(2, 2, 2)}
    references = pellucid.Leaves({"left": torch.ones(4, 3), "right": torch.zeros(4, 1, 1)})
    technique = pellucid.create("expected_gradients", baselines=references, n_samples=4)
    values = pellucid.explain(Two(), inputs, technique, target=0).values
    torch.testing.assert_close(values["left"], 2 * (inputs["left"] - 1))
    torch.testing.assert_close(values["right"], inputs["right"])
    uneven = pellucid.Leaves({"left": torch.ones(4, 3), "right": torch.zeros(3, 1, 1)})
    with pytest.raises(pellucid.ParameterError, match="same number"):
        pellucid.explain(Two(), inputs, pellucid.create("expected_gradients", baselines=uneven), target=0)


@pytest.mark.parametrize(
    ("baselines", "words"),
    [
        (torch.zeros(3, 4), "broadcast"),
        (torch.zeros(0, 5), "at least one row"),
        (torch.full((2, 5), torch.inf), "not finite"),
        ("grey", "unknown"),
    ],
)
def test_references_that_do_not_fit_are_told(baselines, words):
    with pytest.raises(pellucid.ParameterError, match=words):
        pellucid.explain(Bent().double(), points(2), pellucid.create("expected_gradients", baselines=baselines))


def test_bad_parameters_are_named():
    with pytest.raises(pellucid.ParameterError, match="n_samples"):
        pellucid.create("expected_gradients", n_samples=1)
