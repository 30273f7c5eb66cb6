"""A small grammar of the English that captions are written in: words, tags, chunks. No model, no download."""
