"""Session libraries behind one interface: ``registry`` lists them, ``choice`` picks one for a bundle."""
