"""KCDP: learn emotions from labelled photographs, recognise them in stickers, on the device.

Importing this package costs nothing: it loads neither torch nor a session library.
"""

__version__ = "0.1.0"
