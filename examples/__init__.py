"""Programs that show Octavo at work on real data; run as ``python -m examples.NAME``."""
