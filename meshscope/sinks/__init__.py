"""Where exchanges and rows go; ``open_sinks`` builds what the settings ask for."""
