"""Documents to compiled policy to decision. Pure: the only place that makes a `Permit`."""
