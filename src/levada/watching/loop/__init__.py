"""What any training loop shows of itself: where its losses, passes, optimizers and seconds begin and end."""
