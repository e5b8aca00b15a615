"""The authoring guide says what the files say."""

import ast
import importlib.util
import inspect
import re
import sys

import pytest
from tests.docs.pages import ROOT, blocks

import pellucid
from pellucid import cli
from pellucid.registry import discovery, hooks
from pellucid.testing import check_technique

PAGE = (ROOT / "docs/plugins.md").read_text()
BLOCKS = blocks(PAGE)


@pytest.mark.parametrize(("source", "language", "text"), BLOCKS)
def test_every_block_stands_in_a_tested_file(source, language, text):
    if language == "console":
        for line in re.findall(r"^pellucid (\w+)", text, flags=re.MULTILINE):
            assert line in cli.COMMANDS
        return
    assert source, "a block of code names the file that it is taken from"
    assert f"\n{text}" in f"\n{(ROOT / source).read_text()}"


def test_the_page_has_the_blocks():
    assert [language for _, language, _ in BLOCKS].count("python") >= 5
    assert PAGE.count("```") == 2 * len(BLOCKS)


def specified():
    for node in ast.parse(inspect.getsource(hooks)).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("pellucid_"):
            yield f"{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}", ast.get_docstring(node)


def test_hooks_are_documented_with_their_exact_signatures():
    section = PAGE.partition("## The hooks\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### `(.*)`$", section, flags=re.MULTILINE) == [signature for signature, _ in specified()]
    for signature, docstring in specified():
        assert f"### `{signature}`\n\n{docstring}\n" in section


def test_every_environment_variable_is_read():
    code = "".join(path.read_text() for path in (ROOT / "core/pellucid").rglob("*.py"))
    for variable in re.findall(r"`(PELLUCID_\w+)", PAGE):
        assert f'"{variable}"' in code


def test_every_public_name_that_it_uses_exists():
    for name in re.findall(r"`([A-Z]\w+)`", PAGE):
        assert name in pellucid.__all__ or name in {"True", "False"} or name.startswith("PELLUCID_")


def run_example(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(discovery, "_current", [])


def linear():
    import torch

    torch.manual_seed(0)
    return torch.nn.Linear(6, 3).eval(), torch.randn(2, 6)


def test_the_notebook_s_technique_works(own_registry, monkeypatch):
    run_example("notebook", monkeypatch)
    run_example("notebook", monkeypatch)
    model, inputs = linear()
    result = pellucid.explain(model, inputs, "signed_square", target=1)
    weights = model.weight[1].detach()
    assert (result.values - weights * weights.abs()).abs().max() < 1e-6
    assert result.meta.technique == "signed_square"


@pytest.mark.parametrize("name", ["drop_without_top", "two_poles"])
def test_the_evaluator_and_the_projector_keep_the_contract(name, own_registry, monkeypatch):
    run_example("metric_and_map", monkeypatch)
    report = check_technique(name)
    assert report.ok, report
    assert report.count("pass") > 20


def test_the_evaluator_measures_what_its_pixels_are_worth(own_registry, monkeypatch):
    import torch

    run_example("metric_and_map", monkeypatch)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    inputs = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    given = pellucid.explain(model, inputs, "input_x_gradient", target=1)
    metric = pellucid.create("drop_without_top", share=0.25)
    scores = pellucid.evaluate(model, inputs, given, metric, controls=False)
    worth = sorted((model[1].weight[1] * inputs.flatten()).tolist(), reverse=True)
    assert scores.values.item() == pytest.approx(sum(worth[:4]), abs=1e-5)


def test_the_timing_wrapper_surrounds_a_run(own_registry, monkeypatch, capsys):
    pellucid.register(run_example("timing", monkeypatch), "timing")
    model, inputs = linear()
    alone = pellucid.explain(model, inputs, "saliency", target=1)
    assert re.search(r"the run took \d+\.\d\d s", capsys.readouterr().err)
    assert alone.values.shape == inputs.shape
