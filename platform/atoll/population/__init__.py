"""The population room."""
