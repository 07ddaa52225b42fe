"""The demo: the main job on real data, with a small network that stands in for a user's own."""
