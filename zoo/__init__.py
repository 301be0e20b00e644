"""Demo bundles: data, no code. Find them with ``importlib.resources.files("zoo")``."""
