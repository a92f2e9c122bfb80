"""Budgets: what a key, a user, a team or a project may spend, kept before the money is spent."""
