"""The verbs of the command line, one module each: `Options` and `run(call) -> Result`."""
