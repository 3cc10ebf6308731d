"""The parts of `compare`: its rows, the networks they are cut to, their training and the table."""
