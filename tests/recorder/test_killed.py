"""A training that is killed, and goes on: nothing that was captured is lost."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

import pellucid
from pellucid.recorder import load

SCRIPT = """
import sys
import torch
from torch import nn
import pellucid

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 3))
probe = torch.arange(1200.0).view(200, 6) / 1200
optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
with pellucid.Recorder(net, probe, layers=["0"], every=1, path=sys.argv[1], labels=torch.arange(200) % 3) as recorder:
    while True:
        optimiser.zero_grad()
        net(probe).square().mean().backward()
        optimiser.step()
        print(recorder.steps, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_killed_training_keeps_every_capture_and_goes_on(tmp_path):
    recording = tmp_path / "recording"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(recording)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    told = 0
    for line in process.stdout:
        told = int(line)
        if told >= 6:
            process.send_signal(signal.SIGKILL)
            break
    rest = process.stdout.read().split()
    assert process.wait(30) == -signal.SIGKILL
    process.stdout.close()
    told = int(rest[-1]) if rest else told
    run = load(recording)["run"]
    assert not run.damaged
    assert run.steps[: told + 1] == tuple(range(told + 1))  # a capture that was not told of yet may be there too
    assert run.states("0").values.shape == (len(run.steps), 200, 400)

    (recording / "run" / ".step-000000099.safetensors.abcd.part").write_bytes(b"half")
    net = nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 3))
    probe = torch.arange(1200.0).view(200, 6) / 1200
    resumed = pellucid.Recorder(net, probe, layers=["0"], every=1, path=recording, resume=True)
    assert resumed.steps == run.steps[-1]
    resumed.step()
    assert load(recording)["run"].steps == tuple(range(run.steps[-1] + 2))
    assert not list((recording / "run").glob(".*"))
