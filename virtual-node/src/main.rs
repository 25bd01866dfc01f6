//! The `virtual-node` binary.

fn main() {}
