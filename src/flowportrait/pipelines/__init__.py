"""From a request to a signed file: one service behind the command line, the studio, samples and benchmarks."""
