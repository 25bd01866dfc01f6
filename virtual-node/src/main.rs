//! The `virtual-node` binary.

use std::process::ExitCode;

use tensile_virtual_node::command;

#[tokio::main]
async fn main() -> ExitCode {
    command().await
}
