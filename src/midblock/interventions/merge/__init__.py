"""Two models mixed block by block into a checkpoint, tensor by tensor."""
