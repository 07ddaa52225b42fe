"""How others keep the integers of linear layers in the folders that they serve."""
