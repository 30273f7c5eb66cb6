"""Reading stickers of every kind: stills, animations, vector and video stickers, archives and packs."""
