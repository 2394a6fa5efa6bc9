"""What the model itself says before and after an update: how it replies to prompts, and what it expects of ordinary texts."""
