"""Is a graph from a file sound? What every operator may be given, makes, and costs."""
