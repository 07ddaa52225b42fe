"""From an ``nn.Module`` to a graph, and the proof that both are the same model."""
