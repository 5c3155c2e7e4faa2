"""The numbers of a sampled step: hooks at the blocks, sums on the device, one copy to the host, a `Sample`."""
