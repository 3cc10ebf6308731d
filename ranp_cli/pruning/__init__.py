"""Which neurons stay, and the slim network: methods, selection, masks, slicing and verification."""
