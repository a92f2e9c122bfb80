"""2 route: which places serve a model, and in which order."""
