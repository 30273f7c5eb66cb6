"""Knowledge: what a picture shows in words (captions, triples), and those words as CLIP tokens."""
