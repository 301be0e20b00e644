"""ONNX models to engines: checks, precision and builds."""
