"""Every step, sampled or not: forward passes, pauses, and passes that no update follows."""
