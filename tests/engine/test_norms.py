"""BatchNorm run as an affine map: the same numbers, and the module itself wherever the map could differ from it."""

import copy
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import pellucid
from pellucid.engine.norms import AffineNorms


def net(**options: object) -> nn.Sequential:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(4, **options), nn.BatchNorm2d(6, eps=0.1, **options)]  # type: ignore[arg-type]
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.1, 2)
        for own in norm.parameters():
            nn.init.uniform_(own, -2, 2)
    head = [nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 2)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), norms[0], nn.ReLU(), nn.Conv2d(4, 6, 3), norms[1], *head).eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0].abs()


def lent(model: nn.Module) -> int:
    """How many norms run as affine maps."""
    before = [part.forward for part in model.modules()]
    with AffineNorms(model.modules(), {})():
        return sum(part.forward != own for part, own in zip(model.modules(), before, strict=True))


@pytest.mark.parametrize("options", [{}, {"affine": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_maps_give_what_the_norms_give(options: dict[str, object], dtype: torch.dtype) -> None:
    model, x = net(**options).to(dtype), images().to(dtype)
    plain, wanted = model(x), gradient(model, x)
    with AffineNorms(model.modules(), {})():
        torch.testing.assert_close(model(x), plain)
        torch.testing.assert_close(gradient(model, x), wanted)
        last = model[1](x[:, [0, 1, 2, 0]].contiguous(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pellucid.explain(model, x, "saliency", 0).values, wanted)


def test_a_backward_pass_through_a_map_keeps_no_input() -> None:
    def kept(model: nn.Module) -> int:
        sizes: list[int] = []
        x = images().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
            model(x)
        return sum(sizes)

    model = net().requires_grad_(False)
    plain = kept(model)
    with AffineNorms(model.modules(), {})():
        assert kept(model) <= plain - 2 * (4 * 36 + 6 * 16) + 64


def test_the_maps_are_given_back_also_after_an_error() -> None:
    model = net()
    before = [dict(part.__dict__) for part in model.modules()]
    lend = AffineNorms(model.modules(), {})

    def interrupted() -> None:
        with lend():
            assert "forward" in model[1].__dict__
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert [dict(part.__dict__) for part in model.modules()] == before


def test_a_change_of_statistics_that_autograd_does_not_count_is_not_missed() -> None:
    model, x = net(), images()
    pellucid.explain(model, x, "saliency", 0)
    assert isinstance(model[1].running_var, torch.Tensor)
    model[1].running_var.data[0] = 9.0
    model[4].weight.data[2] = -3.0
    torch.testing.assert_close(pellucid.explain(model, x, "saliency", 0).values, gradient(model, x))


class Shifting(nn.Module):
    """Changes its norm's mean in each pass, before the norm runs."""

    def __init__(self, change: Callable[[nn.BatchNorm2d], None]) -> None:
        super().__init__()
        self.model, self.change = net(), change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.change(self.model[1])  # type: ignore[arg-type]
        return self.model(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "change",
    [
        lambda norm: norm.running_mean.fill_(0.5),
        lambda norm: setattr(norm, "running_mean", torch.full((4,), 0.5)),
        lambda norm: setattr(norm, "weight", nn.Parameter(torch.full((4,), 0.5))),
        lambda norm: norm.train(),
    ],
    ids=["in place", "exchanged", "weight", "train mode"],
)
def test_a_norm_that_the_model_changes_in_its_pass_runs_as_it_is(change: Callable[[nn.BatchNorm2d], None]) -> None:
    model, x = Shifting(change), images()
    wanted = gradient(copy.deepcopy(model), x)
    torch.testing.assert_close(pellucid.explain(model, x, "saliency", 0).values, wanted)


class Doubled(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_norms_of_another_kind_run_as_they_are() -> None:
    assert lent(net()) == 2
    assert lent(net().half()) == 0
    assert lent(nn.DataParallel(net())) == 0
    assert lent(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm1d(3), Doubled(3))) == 0
    pruned = net()
    prune.l1_unstructured(pruned[1], "weight", 2)  # type: ignore[no-untyped-call]
    assert lent(pruned) == 1
    patched = net()
    patched[4].forward = lambda x: x  # type: ignore[method-assign]
    assert lent(patched) == 1
    with torch.inference_mode():
        made = net()
    assert lent(made) == 0


def test_inputs_that_do_not_fit_are_refused_as_the_norm_refuses_them() -> None:
    norm = net()[1]
    with AffineNorms([norm], {})():
        for wrong in (torch.rand(2, 1, 5, 5), torch.rand(2, 4, 5), torch.rand(2, 4, 5, 5).double()):
            with pytest.raises((RuntimeError, ValueError)):
                norm(wrong)
        assert norm(torch.rand(2, 4, 5, 5)).shape == (2, 4, 5, 5)


def test_the_function_within_a_norm_and_gradients_by_its_parameters_are_its_own() -> None:
    model, x = net(), images()
    within = pellucid.create("activations", layer="1/batch_norm:0")
    torch.testing.assert_close(pellucid.explain(model, x, within, 0).values, model[1](model[0](x)).detach())
    train = (images().repeat(2, 1, 1, 1), torch.tensor([0, 1, 0, 1]))
    found = pellucid.explain(model, x, pellucid.create("ntk_influence", train=train), 0).values
    optimised = pellucid.explain(
        model.double(), x.double(), pellucid.create("ntk_influence", train=(train[0].double(), train[1])), 0
    )
    torch.testing.assert_close(found, optimised.values.float(), rtol=1e-3, atol=1e-4)


def test_a_norm_in_the_place_of_another_and_a_changed_epsilon_are_noticed() -> None:
    model, x = net(), images()
    pellucid.explain(model, x, "saliency", 0)
    other = nn.BatchNorm2d(4, eps=3.0).eval()
    other.__dict__["_parameters"], other.__dict__["_buffers"] = dict(model[1]._parameters), dict(model[1]._buffers)
    model[1] = other
    torch.testing.assert_close(pellucid.explain(model, x, "saliency", 0).values, gradient(model, x))
    model[4].eps = 0.7
    torch.testing.assert_close(pellucid.explain(model, x, "saliency", 0).values, gradient(model, x))


def test_what_is_kept_of_norms_keeps_no_model() -> None:
    norm = nn.BatchNorm2d(3).eval()
    pellucid.explain(
        pellucid.adapt(norm, output=lambda out: out.mean(dim=(2, 3))), torch.rand(1, 3, 4, 4), "saliency", 0
    )
    gone = weakref.ref(norm)
    del norm
    assert gone() is None


def in_pass(change: Callable[[nn.BatchNorm2d], nn.Module]) -> nn.Module:
    """A network whose first norm is exchanged for what a function makes of it, in each pass."""

    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            norm: nn.BatchNorm2d = self.model[1]  # type: ignore[assignment]
            return self.model[2:](change(norm)(self.model[0](x)))  # type: ignore[no-any-return]

    return Changing().eval()


def copied(norm: nn.BatchNorm2d) -> nn.Module:
    made = copy.deepcopy(norm)
    made.running_mean.add_(1)  # type: ignore[union-attr]
    made.weight.data.mul_(2)
    return made


def written(norm: nn.BatchNorm2d) -> nn.Module:
    made: nn.Module = pickle.loads(pickle.dumps(norm))
    made.running_var.mul_(2)
    return made


def steeper(norm: nn.BatchNorm2d) -> nn.Module:
    norm.eps = 0.5
    return norm


def trained(norm: nn.BatchNorm2d) -> nn.Module:
    norm.train()
    norm(torch.linspace(0, 9, 64).reshape(1, 4, 4, 4))
    return norm.eval()


@pytest.mark.parametrize("change", [copied, written, steeper, trained])
def test_what_the_model_makes_of_a_norm_in_its_pass_is_no_map(change: Callable[[nn.BatchNorm2d], nn.Module]) -> None:
    model, x = in_pass(change), images()
    wanted = gradient(copy.deepcopy(model), x)
    torch.testing.assert_close(pellucid.explain(model, x, "saliency", 0).values, wanted)


def test_a_copy_of_the_model_that_is_made_in_a_pass_is_a_model_as_any_other() -> None:
    model, x, kept = net(), images(), []
    handle = model.register_forward_hook(lambda *_: kept.append(copy.deepcopy(model)))
    pellucid.explain(model, x, "saliency", 0)
    handle.remove()
    other = kept[0]
    other[1].running_mean.add_(1)
    model[1].running_mean.add_(1)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(other(x), model(x))


class Tokens(nn.Module):
    """Turns normalised maps into tokens, whose gradient torch takes wrongly for one example."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolution, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[axes]
        self.conv, self.norm = convolution(3, 8, 2), norm(8)
        self.norm.running_var.uniform_(0.1, 2)  # type: ignore[union-attr]
        self.mix = nn.Parameter(torch.randn(4**axes, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        return (tokens * self.mix).sum(dim=1)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_gradient_of_one_example_through_tokens_is_right(axes: int) -> None:
    model = Tokens(axes).double().eval()
    x = torch.randn(2, 3, *(5,) * axes, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    two = pellucid.explain(model, x, "saliency", 0).values  # torch is right for two
    torch.testing.assert_close(two, gradient(model, x))
    one = pellucid.explain(model, x[:1], "saliency", 0).values
    torch.testing.assert_close(one, two[:1])
