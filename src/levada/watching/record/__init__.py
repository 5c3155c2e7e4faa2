"""A watched run on its way to a folder, or to an exporter."""
