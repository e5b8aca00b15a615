"""Training dynamics: what a network computes, recorded while it trains, and read again."""

from pellucid.recorder.page import save_animation, save_page
from pellucid.recorder.recorder import Recorder
from pellucid.recorder.recording import Recording, Run, load
from pellucid.recorder.schedule import Schedule
from pellucid.recorder.states import States

__all__ = ["Recorder", "Recording", "Run", "Schedule", "States", "load", "save_animation", "save_page"]
