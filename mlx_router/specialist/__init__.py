"""One resident base model with many adapters, behind OpenAI's API."""
