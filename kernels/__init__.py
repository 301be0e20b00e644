"""CUDA kernels of the cascade and the NumPy reference of each."""
