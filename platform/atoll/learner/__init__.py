"""The learner room."""
