"""The healthy zoo: real architectures as their authors train them, in which every error is a false alarm."""
