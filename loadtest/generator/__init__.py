"""The open-loop generator: when requests leave, the client that sends them, and the record of what came of them."""
