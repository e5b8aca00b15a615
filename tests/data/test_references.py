import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pellucid import BadReference, ModelError, Reference, load_model
from pellucid.data.weights import read_weights


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Python file with ways to make a model, and its reference without the name."""
    (tmp_path / "mine_for_test.py").write_text(
        "from torch import nn\n"
        "def make(classes=3):\n"
        "    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, classes))\n"
        "ready = make()\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "python:mine_for_test"
    sys.modules.pop("mine_for_test", None)


def test_a_reference_is_read_and_written_back():
    text = "torchvision:resnet50?weights=DEFAULT&num_classes=10&rate=0.5&quantize=false&seed=none"
    reference = Reference.parse(text)
    assert (reference.scheme, reference.name) == ("torchvision", "resnet50")
    assert dict(reference.options) == {
        "weights": "DEFAULT",
        "num_classes": 10,
        "rate": 0.5,
        "quantize": False,
        "seed": None,
    }
    assert str(reference) == text
    assert Reference.parse(str(reference)) == reference
    assert len({reference, Reference.parse(text)}) == 1
    with pytest.raises(TypeError):
        reference.options["weights"] = None  # type: ignore[index]


def test_names_may_hold_slashes_and_colons_and_options_escapes():
    reference = Reference.parse("python:my/file.py:make?label=a%26b%25")
    assert reference.name == "my/file.py:make"
    assert reference.options["label"] == "a&b%"
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet50", "Did you mean 'torchvision:resnet50'"),
        ("", "is no reference"),
        ("torchvision:", "is no reference"),
        (":resnet50", "is no reference"),
        ("C:\\photos", "is no reference"),
        ("torchvision:resnet50?weights", "'weights' in .* is no option"),
        ("torchvision:resnet50?a=1&a=2", "gives the option 'a' twice"),
        ("tochvision:resnet50", "Did you mean 'torchvision'"),
        ("onnx:model", "nobody provides a model"),
        ("torchvision:resnet5?weights=none", "Did you mean 'resnet50'"),
        ("torchvision:resnet18?weights=IMAGENET1K_V7", "IMAGENET1K_V1"),
        ("torchvision:resnet18?weights=none&widht=3", "refuses its options .*widht"),
        ("torchvision:resnet18?weights=absent.pth", "no file of weights 'absent.pth'"),
        ("demo:efficientnet_lite1", "Did you mean 'efficientnet_lite0'"),
        ("demo:efficientnet_lite0?size=3", "takes no option size"),
        ("demo:efficientnet_lite0?weights=V3", "has no weights 'V3'"),
        ("python:nothing_here:make", "no module 'nothing_here'"),
        ("python:json", "names no callable"),
        ("python:json:lods", "Did you mean 'loads'"),
        ("python:absent.py:make", "no Python file 'absent.py'"),
    ],
)
def test_bad_references_are_refused_in_one_line(text, message):
    with pytest.raises(BadReference, match=message) as caught:
        load_model(text)
    assert "\n" not in str(caught.value)


def test_a_module_of_ones_own_is_loaded(maker):
    made = load_model(f"{maker}:make?classes=7")
    assert made.module(torch.zeros(2, 5)).shape == (2, 7)
    assert made.name == f"{maker}:make?classes=7"
    assert isinstance(load_model(f"{maker}:ready").module, nn.Sequential)
    assert isinstance(load_model("python:mine_for_test.py:make").module, nn.Sequential)
    for name, message in [("make?klasses=2", "klasses"), ("number", "of type int"), ("ready?classes=2", "no options")]:
        with pytest.raises(BadReference, match=message):
            load_model(f"{maker}:{name}")
    assert str(Path.cwd()) not in sys.path


def test_models_and_adapters_pass_through():
    module = nn.Linear(3, 2)
    adapter = load_model(module)
    assert adapter.module is module
    assert load_model(adapter) is adapter


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights_come_from_a_file(maker, suffix, prefix):
    torch.manual_seed(3)
    trained = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    state = {prefix + name: value for name, value in trained.state_dict().items()}
    if suffix == "safetensors":
        save_file(state, "w.safetensors")
    else:
        torch.save({"state_dict": state, "epoch": 3}, "w.pth")
    adapter = load_model(f"{maker}:make?weights=w.{suffix}")
    inputs = torch.randn(2, 5)
    torch.testing.assert_close(adapter.module(inputs), trained(inputs), rtol=0, atol=0)
    assert adapter.notes[-1] == f"weights read from w.{suffix}"


def test_weights_that_do_not_fit_leave_the_model_alone(maker):
    torch.save({"0.weight": torch.ones(9, 5), "0.bias": torch.ones(4), "extra": torch.ones(1)}, "w.pth")
    with pytest.raises(ModelError, match=r"0.weight is \(9, 5\) in the file and \(4, 5\).*lacks 2\.weight"):
        load_model(f"{maker}:make?weights=w.pth")


def test_pickles_need_trust(maker):
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    torch.save(model, "whole.pth")
    with pytest.raises(BadReference, match="--trust"):
        load_model(f"{maker}:make?weights=whole.pth")
    adapter = load_model(f"{maker}:make?weights=whole.pth", trust=True)
    torch.testing.assert_close(adapter.module[0].weight, model[0].weight)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 half a zip"])
def test_damaged_weights_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadReference, match="cannot be read as weights") as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_state_dictionary_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(BadReference, match="holds no state dictionary"):
        read_weights(tmp_path / "w.pth")
