"""What is particular to runs of kind `refine`: their puzzles, figures, pictures and checks."""
