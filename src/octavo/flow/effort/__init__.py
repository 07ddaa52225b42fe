"""More accuracy for more time: methods one after the other, each kept where it brings something."""
