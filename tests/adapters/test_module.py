import subprocess
import sys

import pytest
import torch
from torch import nn

from pellucid import ModelError, ParameterError, adapt

ALL = {"outputs", "activations", "gradients", "factors", "rules"}


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def test_any_module_is_taken_as_it_is():
    model = small().train()
    adapter = adapt(model)
    assert adapter.module is model
    assert model.training
    assert adapter.offers == ALL
    assert adapter.notes == ()


def test_what_the_user_says_counts():
    adapter = adapt(small(), name="mine", categories=list("abcde"), mean=[0, 0, 0], std=(1, 1, 1), output=0)
    assert (adapter.name, adapter.categories, adapter.mean, adapter.std) == ("mine", list("abcde"), (0,) * 3, (1,) * 3)
    assert adapter.output == 0


def test_an_unknown_option_is_refused():
    with pytest.raises(ParameterError, match="Did you mean 'categories'"):
        adapt(small(), categorys=["a"])


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: nn.DataParallel(torch.compile(model))])
def test_wrappers_are_taken_off(wrap):
    model = small()
    adapter = adapt(wrap(model), name="mine")
    assert adapter.module is model
    assert adapter.name == "mine"
    assert all("was taken off" in note for note in adapter.notes)
    assert adapter.notes


def test_a_model_compiled_in_place_runs_uncompiled_and_stays_compiled():
    model = small()
    model.compile()
    adapter = adapt(model)
    assert adapter.module._compiled_call_impl is None
    assert model._compiled_call_impl is not None
    assert adapter.module[4] is model[4]
    seen = []
    handle = adapter.module[4].register_forward_hook(lambda *call: seen.append(1))
    adapter.module(torch.zeros(1, 3, 8, 8))
    handle.remove()
    assert seen == [1]


def test_a_compiled_part_is_refused():
    with pytest.raises(ModelError, match=r"the part '1' of Sequential is wrapped by torch\.compile"):
        adapt(nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2))))


def test_models_that_cannot_run_are_refused():
    with torch.inference_mode():
        frozen = small()
    with torch.device("meta"):
        empty = small()
    for model, message in [
        (nn.ModuleList([small()]), "has no `forward`"),
        (nn.Sequential(nn.LazyLinear(3)), "has no shape yet"),
        (empty, "on the meta device"),
        (frozen, "made in inference mode"),
    ]:
        with pytest.raises(ModelError, match=message):
            adapt(model)


def test_inference_tensors_are_cured_as_the_message_says():
    import copy

    with torch.inference_mode():
        frozen = small()
    adapter = adapt(copy.deepcopy(frozen))
    inputs = torch.zeros(1, 3, 8, 8, requires_grad=True)
    torch.autograd.grad(adapter.module(inputs).sum(), inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_script_module_offers_no_activations():
    adapter = adapt(torch.jit.trace(small().eval(), torch.zeros(1, 3, 8, 8)))
    assert adapter.offers == {"outputs", "gradients"}
    inputs = torch.randn(1, 3, 8, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(adapter.logits(adapter.module(inputs))[0, 0], inputs)
    assert slope.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantised_model_offers_outputs_only():
    quantised = pytest.importorskip("torch.ao.nn.quantized.dynamic")
    adapter = adapt(nn.Sequential(quantised.Linear(3, 2)))
    assert adapter.offers == {"outputs"}
    assert "quantised" in adapter.notes[0]


def test_the_plugin_imports_nothing_heavy():
    code = (
        "import sys, pellucid_adapters\n"
        "heavy = {'torch', 'torchvision', 'timm', 'transformers', 'sklearn', 'numpy', 'PIL', 'skimage'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_adapting_a_module_imports_no_other_library():
    code = (
        "import sys, torch, pellucid\n"
        "pellucid.adapt(torch.nn.Linear(2, 2))\n"
        "print(sorted({'torchvision', 'timm', 'transformers', 'skimage'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
