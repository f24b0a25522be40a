"""The command line: parses arguments, calls the floor below, prints. Knows no protocol and takes no decision."""
