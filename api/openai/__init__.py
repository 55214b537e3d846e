"""The OpenAI-compatible surface: other words for the same responses."""
