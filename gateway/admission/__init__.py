"""1 admit: who asks, and may they."""
