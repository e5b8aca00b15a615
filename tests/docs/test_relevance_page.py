"""The page on relevance says what the files say, and the files run."""

import re

import pytest
import torch
from tests.docs.pages import ROOT, blocks, check_taken_from_files, example
from torch import nn

import pellucid
from pellucid_rules.composites import COMPOSITES

PAGE = (ROOT / "docs/relevance.md").read_text()
BLOCKS = blocks(PAGE)


@pytest.fixture(scope="module")
def examples():
    return example("relevance")


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4)]
    return nn.Sequential(*layers).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_every_block_stands_in_a_tested_file():
    check_taken_from_files(PAGE)


def test_every_example_stands_on_the_page(examples):
    shown = {name for *_, text in BLOCKS for name in re.findall(r"^(?:def|class) (\w+)", text, flags=re.MULTILINE)}
    made = {name for name, one in vars(examples).items() if getattr(one, "__module__", "") == "example_relevance"}
    assert shown == made


def test_the_table_names_every_composite():
    rows = re.findall(r"^\| (`.*?) \|", PAGE.partition("## What became")[0], flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row)}
    assert named | {"epsilon_alpha2_beta1_flat"} == set(COMPOSITES)


def test_composites_and_what_became_of_the_score(examples, net, images):
    for result in examples.by_composites(net, images).values():
        assert result.values.shape == images.shape
    told = list(examples.accounts(net, images))
    assert [one.partition(":")[0] for one in told][:3] == ["conservation", "bias share", "ruled"]
    result = pellucid.explain(net, images, "lrp")
    score = net(images).amax(dim=1).detach()
    shares = sum(float(result.checks.named(name).value) for name in ("conservation", "bias share"))
    kept = shares * float(score.abs().sum())
    torch.testing.assert_close(result.values.sum() + kept, score.sum(), rtol=1e-4, atol=1e-5)


def test_the_ledger_tells_where(examples, net, images, capsys):
    result = pellucid.explain(net, images, examples.Audited())
    torch.testing.assert_close(result.values, pellucid.explain(net, images, "lrp").values)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 3
    assert any("convolution of '0'" in line or "addmm of '5'" in line for line in told)


def test_policies_of_attention(examples):
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0).eval()
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)).eval()
    found = examples.both_policies(model, torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3)))
    assert "softmax share" in [check.name for check in found["taylor"].checks]
    assert "softmax share" not in [check.name for check in found["constant"].checks]
    assert all(one.checks.named("conservation").passed for one in found.values())
    assert not torch.allclose(found["taylor"].values, found["constant"].values)


def test_baselines_and_patterns(examples, net, images):
    others = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    for result in examples.against_baselines(net, images, others).values():
        assert result.checks.named("completeness").passed
    for result in examples.along_patterns(net, images, others).values():
        assert result.values.shape == images.shape
        assert result.checks.named("silent") is not None
