"""The page on dynamics: its code runs, and its pipeline is one that ships."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import pellucid
from pellucid.recorder import load

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/dynamics.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore")
def test_the_code_of_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(16, 8), nn.Linear(8, 10)

        def forward(self, x):
            return self.fc2(self.fc1(x.flatten(1)).relu())

    torch.manual_seed(0)
    probe, labels = torch.rand(30, 1, 4, 4), torch.arange(30) % 10

    def train(model):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(9):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(probe), labels).backward()
            optimiser.step()

    known = {"model": Net(), "probe": probe, "labels": labels, "train": train}
    code = [text for language, text in BLOCKS if language == "python"]
    assert len(code) == 5
    for text in code:
        exec(compile(text, "docs/dynamics.md", "exec"), known)
    assert load("recording").run().steps == (0, 1, 4, 9)
    assert Path("map.html").exists()
    assert Path("map.gif").exists()


def test_the_pipeline_of_the_page_ships():
    (text,) = [text for language, text in BLOCKS if language == "yaml"]
    assert text in (ROOT / "examples/digits-mislabels.yaml").read_text()
    for name in re.findall(r"`(examples/[\w.-]+\.yaml)`", PAGE):
        assert (ROOT / name).exists()


def test_every_projector_and_metric_stands_on_the_page():
    names = {one.name for one in pellucid.techniques("projector")}
    names |= {one.name for one in pellucid.techniques("evaluator") if one.explains == "projection"}
    assert not {name for name in names if f"`{name}`" not in PAGE}
