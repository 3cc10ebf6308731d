"""What every room builds on and what knows none of them: errors, tensors in nested data, copies, contexts, numbers as text, files."""
