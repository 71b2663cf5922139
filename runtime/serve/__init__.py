"""The local server: a page for people and a JSON API for programs on one port, over one queue whose jobs share the denoiser's calls.

``jobs`` holds the queue and needs NumPy alone; ``api`` (FastAPI), ``page`` (NiceGUI) and ``server`` (uvicorn) import their libraries where
they use them, and ``guard`` stands before all of it: size of requests, rate per client, token, and who may speak to a loopback address.
"""
