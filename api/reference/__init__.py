"""The OpenAPI document: what the code cannot tell of itself, beside what FastAPI reads off it."""
