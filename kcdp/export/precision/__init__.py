"""Precision: ranges on real pictures, half precision with float32 islands, 8 bits, and what computes in which type."""
