"""Evidence: the scores that a verdict rests on, how far they stand from thresholds and from noise, and judging them anew."""
