"""Files that are read whole and written whole."""
