"""The model as a graph of operator calls: captured, rewritten, checked, run, written as JSON."""
