"""Other formats: ONNX and the programs of torch.export."""
