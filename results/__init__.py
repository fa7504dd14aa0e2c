"""What runs were worth: published numbers, our own runs, and what reads, compares and shows them."""
