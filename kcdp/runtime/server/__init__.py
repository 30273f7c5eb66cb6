"""Tags over HTTP: pictures in, rows out, several requests' pictures in one run of the graph.

``options`` says how much is allowed, ``problems`` what is answered where it is more. A request's pictures are read
off the wire by ``body``, go through ``pipeline`` (decoded by a few threads, tagged in batches by one) and come back as
the rows of ``schema``; ``service`` holds all of that together, ``app`` makes its endpoints, ``running`` opens the
socket and ends well, ``guard`` watches connections, ``metrics`` counts.

Importing this package loads nothing; FastAPI, uvicorn and prometheus_client come with the extra ``serve``.
"""
