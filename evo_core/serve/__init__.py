"""Serving: a trained model behind an OpenAI-compatible HTTP API, with a page to try it.

    evo serve CHECKPOINT                    http://127.0.0.1:8000

The web framework is imported when a server is made (`api.create_app`), not before.
"""
