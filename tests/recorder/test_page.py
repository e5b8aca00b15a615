"""The page and the animation: what they say, and that they need nothing else."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import pellucid
from pellucid import Attribution, States
from pellucid.recorder import save_animation, save_page


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
    assert data["marks"] is None
    assert data["explanations"] == []
    assert "diverged" in page


def test_a_page_without_labels_outputs_and_pictures(states, tmp_path):
    bare = States(states.values[:1], states.steps[:1])
    page = save_page(bare.project("pca"), bare, tmp_path / "map.html").read_text()
    assert json.loads(re.search(r"const data = (.*);\n", page)[1])["colours"] == {}


def test_marks_colours_and_explanations_of_some_points(states, tmp_path):
    made = replace(states.project("pca"), marks=tuple("odd" if place % 2 else "" for place in range(20)))
    heat = torch.zeros(2, 3, 8, 8)
    heat[0, :, :4] = 1
    given = Attribution(heat, inputs=states.pictures[:2].permute(0, 3, 1, 2) / 255)
    bars = Attribution(torch.rand(20, 5), over="features")
    page = save_page(
        made,
        states,
        tmp_path / "map.html",
        colours={"age": torch.arange(20.0)},
        explanations={"why": given, "all": bars[:3]},
        at={"why": [7, 3], "all": [0, 1, 2]},
    ).read_text()
    data = json.loads(re.search(r"const data = (.*);\n", page)[1])
    assert data["marks"][:3] == ["", "odd", ""]
    assert data["colours"]["age"]["values"] == list(range(20))
    why, everything = data["explanations"]
    assert why["places"] == {"7": 0, "3": 1}
    assert everything["places"] == {str(place): place for place in range(3)}
    with Image.open(io.BytesIO(base64.b64decode(why["sheet"]["address"].split(",")[1]))) as sheet:
        assert sheet.size == (16, 8)
        top, bottom = (torch.tensor(np.asarray(sheet)).double()[rows, :8].mean(dim=(0, 1)) for rows in ((0, 1), (6, 7)))
    assert top[0] > top[2] + 50  # above, the map's red covers the photo; below there is no map
    assert (bottom[0] - bottom[2]).abs() < 50


def test_colours_and_explanations_of_other_points_are_refused(states, tmp_path):
    made, one = states.project("pca"), Attribution(torch.rand(2, 5), over="features")
    with pytest.raises(pellucid.InputError, match=r"colour 'age'.*expected \(20,\)"):
        save_page(made, states, tmp_path / "map.html", colours={"age": torch.arange(3.0)})
    for at in ({}, {"why": [1]}, {"why": [1, 20]}):
        with pytest.raises(pellucid.InputError, match="'why' explains 2 examples"):
            save_page(made, states, tmp_path / "map.html", explanations={"why": one}, at=at or {"why": range(3)})


def test_an_animation_is_a_gif_of_every_capture(states, tmp_path):
    path = save_animation(states.project("pca"), states, tmp_path / "map.gif", between=2)
    with Image.open(path) as picture:
        assert picture.n_frames == 7


def test_one_capture_and_a_run_of_nothing_but_nan_at_the_end(states, tmp_path):
    one = states.at(torch.tensor([1]))
    path = save_animation(one.project("pca"), one, tmp_path / "one.gif")
    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) == 1
    values = states.values.clone()
    values[1:] = torch.nan
    lost = replace(states, values=values)
    with Image.open(save_animation(lost.project("pca"), lost, tmp_path / "lost.gif", between=1)) as picture:
        picture.seek(picture.n_frames - 1)
    data = re.search(r"const data = (.*);\n", save_page(lost.project("pca"), lost, tmp_path / "lost.html").read_text())
    assert json.loads(data[1])["places"][1] == [[None, None]] * 20


def test_maps_of_other_states_are_refused(states, tmp_path):
    made = states.project("pca", n_components=3)
    for save in (save_page, save_animation):
        with pytest.raises(pellucid.InputError, match="two axes"):
            save(made, states, tmp_path / "map")
    with pytest.raises(pellucid.SavedFileError, match="folder"):
        save_page(states.project("pca"), states, tmp_path / "no" / "map.html")


def test_an_animation_is_a_gif_and_takes_time(states, tmp_path):
    made = states.project("pca")
    with pytest.raises(pellucid.SavedFileError, match=r"ends in \.gif"):
        save_animation(made, states, tmp_path / "map.mp4", between=1)
    for wrong in ({"seconds": 0}, {"between": 0}):
        with pytest.raises(pellucid.ParameterError, match="positive"):
            save_animation(made, states, tmp_path / "map.gif", **wrong)
