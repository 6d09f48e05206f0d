"""One's own images: prediction, calibration, ONNX export, the service behind the web page."""
