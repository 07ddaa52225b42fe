"""The demo: the main job on real data, with a small network that stands in for a user's own."""

from octavo.demo.demo import DemoResult, Net, augmented, run_demo, silent, trained_net

__all__ = ["DemoResult", "Net", "augmented", "run_demo", "silent", "trained_net"]
