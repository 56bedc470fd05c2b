"""The endpoint that routes each prompt to a specialist."""
