"""What an evaluation and a comparison of runs measure, draw and write."""
