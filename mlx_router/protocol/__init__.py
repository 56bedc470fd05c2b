"""The OpenAI wire, shared by gateway and specialist: requests, answers, the error envelope, SSE.

Nothing here knows of models, threads or sockets; only `mlx_router.errors` is imported.
"""
