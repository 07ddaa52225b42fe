"""What a command line names: a model, data, a folder of images, an object in a module."""
