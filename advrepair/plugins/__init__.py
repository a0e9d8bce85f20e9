"""The built-in components; they enter through the same entry points as everyone's."""
