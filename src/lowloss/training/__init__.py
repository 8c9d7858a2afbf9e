"""The Lightning modules, one a stage, and what runs them."""
