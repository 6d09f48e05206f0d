"""Small and general: files, logs, errors, signals, devices, several processes."""
