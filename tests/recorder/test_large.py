"""Recordings larger than the memory: their states lie on disk, and pca maps them from there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pellucid
from pellucid.recorder import files, load

SCRIPT = """
import re, resource, sys
import torch
import pellucid
from pellucid.recorder import files, load

torch.set_num_threads(1)
pellucid.project(torch.rand(300, 280), "pca")  # what libraries keep for themselves is not counted
with open("/proc/self/status") as status:
    held = int(re.search(r"VmData:\\s+(\\d+) kB", status.read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + 40 * 2**20,) * 2)
for files.IN_MEMORY in (2**40, 2**20):
    try:
        states = load(sys.argv[1]).states()
    except (MemoryError, RuntimeError):
        print("no memory")
        continue
    assert states.values.nbytes > 60 * 2**20
    print(*states.project("pca").values.shape)
"""


@pytest.fixture
def recorded(tmp_path):
    """Makes a recording of outputs (steps, n, d)."""

    def record(steps, n, d):
        torch.manual_seed(0)
        net = nn.Linear(2, d)
        recorder = pellucid.Recorder(net, torch.rand(n, 2), path=tmp_path, batch_size=n)
        for step in range(steps):
            recorder.steps = step
            recorder.capture()
            nn.init.normal_(net.weight)
        return tmp_path

    return record


def test_states_on_disk_are_those_in_memory(recorded, monkeypatch):
    folder = recorded(4, 30, 7)
    kept = load(folder).states().values
    monkeypatch.setattr(files, "IN_MEMORY", 4 * 30 * 7 * 4 - 1)
    made = []
    monkeypatch.setattr(files, "_on_disk", lambda *given, plain=files._on_disk: made.append(plain(*given)) or made[-1])
    states = load(folder).states()
    assert states.values is made[0]
    assert torch.equal(states.values, kept)
    assert torch.equal(states.project("pca").values, pellucid.project(kept, "pca").values)
    assert torch.equal(load(folder)["run"].states(steps=[1, 3]).values, kept[[1, 3]])
    assert all(file.name.endswith(".safetensors") for file in (folder / "run").iterdir())


def test_half_precision_lies_on_disk_as_it_is(tmp_path, monkeypatch):
    pellucid.Recorder(nn.Linear(2, 3), torch.rand(5, 2), path=tmp_path, dtype=torch.bfloat16).capture()
    kept = load(tmp_path).states().values
    monkeypatch.setattr(files, "IN_MEMORY", 0)
    assert kept.dtype == torch.bfloat16
    assert torch.equal(load(tmp_path).states().values, kept)


def test_a_disk_without_room_is_told(recorded, monkeypatch):
    folder = recorded(2, 5, 3)
    monkeypatch.setattr(files, "IN_MEMORY", 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(pellucid.SavedFileError, match=r"No space left.*fewer steps"):
        load(folder).states()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a limit on memory, and Linux to read it")
def test_a_recording_larger_than_the_memory_is_mapped(recorded):
    folder = recorded(20, 1000, 800)
    try:
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)],
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
        )  # fmt: skip
    finally:
        for file in (folder / "run").glob("step-*"):
            file.unlink()
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["no memory", "20 1000 2"]
