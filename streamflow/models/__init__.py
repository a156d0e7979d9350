"""The door between the wings: a model node turns records into tensors and predictions back."""
