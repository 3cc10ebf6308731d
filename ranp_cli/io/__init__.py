"""What is read and written: user code, models, mini-batches, losses, slim files and scores."""
