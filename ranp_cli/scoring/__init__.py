"""The importance of neurons: criteria, and the forward and backward passes that they come from."""
