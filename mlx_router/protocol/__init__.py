"""OpenAI's wire format, shared by gateway and specialist."""
