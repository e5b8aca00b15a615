"""Saved files that are missing, damaged, foreign, newer or cannot be written."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pellucid.errors import SavedFileError
from pellucid.results import Attribution, Check, Explanation, Meta, Scores, load


def attribution(**changes):
    return Attribution(torch.arange(6.0).view(2, 3), over="features", **changes)


def test_a_missing_file(tmp_path):
    with pytest.raises(SavedFileError, match="there is no file"):
        load(tmp_path / "nothing.safetensors")


def test_a_folder_is_no_result(tmp_path):
    with pytest.raises(SavedFileError):
        load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_short(tmp_path, share):
    path = attribution().save(tmp_path / "x")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SavedFileError, match="damaged"):
        load(path)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(content)
        with pytest.raises(SavedFileError):
            load(path)


def with_header(path: Path, change) -> Path:
    """Rewrites the file's header."""
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["pellucid"])
    tensors = load_file(path)
    save_file(tensors, path, metadata={"pellucid": json.dumps(change(header))})
    return path


def test_a_newer_format_asks_for_an_update(tmp_path):
    path = with_header(attribution().save(tmp_path / "x"), lambda header: header | {"format": 99})
    with pytest.raises(SavedFileError, match=r"format 99.*update pellucid"):
        load(path)


def test_an_unknown_class_asks_for_its_plugin(tmp_path):
    path = with_header(attribution().save(tmp_path / "x"), lambda header: header | {"kind": "Saga"})
    with pytest.raises(SavedFileError, match=r"'Saga'.*import the plugin"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: {},
        lambda header: [],
        lambda header: header | {"format": "one"},
        lambda header: header | {"parts": {}},
        lambda header: header | {"parts": {"values": {"$tensor": "elsewhere"}}},
        lambda header: header | {"parts": {"values": {"$Unheard": {}}}},
        lambda header: header | {"parts": {"values": {}}},
        lambda header: header | {"parts": {"values": 3}},
    ],
)
def test_a_wrong_header(tmp_path, change):
    with pytest.raises(SavedFileError, match=r"damaged|whole"):
        load(with_header(attribution().save(tmp_path / "x"), change))


def test_parts_that_a_later_version_adds_are_left_out(tmp_path):
    path = with_header(
        attribution().save(tmp_path / "x"), lambda header: header | {"parts": header["parts"] | {"mood": "good"}}
    )
    assert torch.equal(load(path).values, attribution().values)


def test_a_foreign_safetensors_file(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.rand(3)}, tmp_path / "model.safetensors")
    with pytest.raises(SavedFileError, match="did not write"):
        load(tmp_path / "model.safetensors")


def test_the_name_without_its_suffix_is_told(tmp_path):
    path = attribution().save(tmp_path / "x")
    with pytest.raises(SavedFileError, match=re.escape(f"there is no file '{tmp_path / 'x'}'") + f".*'{path}'"):
        load(tmp_path / "x")


def test_another_class_than_was_asked_for(tmp_path):
    path = attribution().save(tmp_path / "x")
    with pytest.raises(SavedFileError, match="holds Attribution; expected Scores"):
        Scores.load(path)


def test_an_unwritable_place_says_so_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "no" / "folder" / "x", tmp_path / "file" / "x"):
        with pytest.raises(SavedFileError, match=r"cannot write.*expected an existing folder"):
            attribution().save(place)
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(SavedFileError, match="cannot write"):
        attribution().save(tmp_path / "taken")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "taken.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_others_may_read_a_file_as_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = attribution().save(tmp_path / "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = attribution().save(tmp_path / "x")
    before = path.read_bytes()
    with pytest.raises(SavedFileError, match=r"meta.parameters.model.*Linear"):
        attribution(meta=Meta(parameters={"model": torch.nn.Linear(1, 1)})).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_failure_in_the_middle_of_writing_leaves_the_old_file(tmp_path, monkeypatch):
    from pellucid.results import storage

    path = attribution().save(tmp_path / "x")
    before = path.read_bytes()

    def full(tensors, where, metadata):
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(SavedFileError, match="No space left"):
        attribution().save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_third_party_class_is_saved_and_found(tmp_path):
    @dataclasses.dataclass(frozen=True, eq=False, repr=False)
    class Legend(Explanation):
        values: torch.Tensor = dataclasses.field(metadata={"axis": 0})
        moral: str = ""

    found = load(Legend(torch.rand(2), "be kind").save(tmp_path / "x"))
    assert isinstance(found, Legend)
    assert found.moral == "be kind"
    with pytest.raises(NotImplementedError, match="Legend has no plot"):
        found.plot()


def test_a_third_party_class_cannot_take_a_name_of_ours():
    with pytest.raises(TypeError, match="already named 'Scores'"):
        type("Scores", (Explanation,), {"__module__": "elsewhere"})


def test_the_header_is_plain_json(tmp_path):
    path = attribution(checks=[Check.bound("sum", float("nan"), 0.1)]).save(tmp_path / "x")
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["pellucid"], parse_constant=pytest.fail)
    assert header["kind"] == "Attribution"
