"""Parts of networks: tensors in, tensors out. No part knows which system calls it."""
