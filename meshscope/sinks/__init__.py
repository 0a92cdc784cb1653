"""Where exchanges go. agent/outputs.py puts the sinks of a run together; see meshscope.model.Sink for what one is."""
