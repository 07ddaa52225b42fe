"""Language models: what others hold of them, and how they are called."""
