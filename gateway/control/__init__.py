"""The control plane's database: what operators decide, keys and budgets, and no journal can give back."""
