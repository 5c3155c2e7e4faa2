"""A watched run in lines of text and in the terminal."""
