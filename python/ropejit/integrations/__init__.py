"""Doors to other libraries, one module each. None imports its library before it is called."""
