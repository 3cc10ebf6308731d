"""Where people train: nnU-Net, MONAI and Lightning. A package is imported only where it is named."""
