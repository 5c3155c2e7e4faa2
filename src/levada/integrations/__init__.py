"""levada inside other tools; each module is imported by the tool that it is for, and imports it."""
