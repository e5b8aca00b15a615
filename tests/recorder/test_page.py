"""The page and the animation: what they say, that they need nothing else, and that a browser shows them."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from PIL import Image

import pellucid
from pellucid import States
from pellucid.recorder import save_animation, save_page


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20, 6, generator=generator)
    values = torch.stack([start + t * torch.randn(20, 6, generator=generator) for t in range(4)])
    values[3, 2] = torch.nan
    return States(
        values,
        torch.tensor([0, 1, 4, 9]),
        labels=torch.arange(20) % 3,
        outputs=torch.nan_to_num(values[..., :3]),
        names=tuple(f"</script><b>{place}</b>" for place in range(20)),
        classes=("ant", "bee", "cat"),
        pictures=torch.randint(256, (20, 8, 8, 3), generator=generator, dtype=torch.uint8),
    )


def test_a_page_has_all_in_one_file(states, tmp_path):
    page = save_page(states.project("pca"), states, tmp_path / "map.html", title="A <map>").read_text()
    assert "A &lt;map&gt;" in page
    assert not re.search(r"""(src|href)=["']?(?!data:)""", page)
    assert "http" not in page
    assert page.count("</script>") == 1
    data = json.loads(re.search(r"const data = (.*);\n", page)[1])
    assert data["steps"] == [0, 1, 4, 9]
    assert data["places"][3][0] == [None, None]
    assert data["names"][3] == "</script><b>3</b>"
    assert set(data["colours"]) == {"label", "prediction", "loss", "learned at step", "times forgotten"}
    assert "diverged" in page


def test_a_page_without_labels_outputs_and_pictures(states, tmp_path):
    bare = States(states.values[:1], states.steps[:1])
    page = save_page(bare.project("pca"), bare, tmp_path / "map.html").read_text()
    assert json.loads(re.search(r"const data = (.*);\n", page)[1])["colours"] == {}


def test_an_animation_is_a_gif_of_every_capture(states, tmp_path):
    path = save_animation(states.project("pca"), states, tmp_path / "map.gif", between=2)
    with Image.open(path) as picture:
        assert picture.n_frames == 7


def test_maps_of_other_states_are_refused(states, tmp_path):
    made = states.project("pca", n_components=3)
    for save in (save_page, save_animation):
        with pytest.raises(pellucid.InputError, match="two axes"):
            save(made, states, tmp_path / "map")
    with pytest.raises(pellucid.SavedFileError, match="folder"):
        save_page(states.project("pca"), states, tmp_path / "no" / "map.html")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_the_page(states, tmp_path):
    page = save_page(states.project("pca"), states, tmp_path / "map.html")
    chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = f"{page.as_uri()}#time=2&point=4&colour=prediction"
    found = subprocess.run([*chromium, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    assert "step 4</output>" in found.stdout
    assert "label bee" in found.stdout
    assert found.stdout.count("<tr") == 5
