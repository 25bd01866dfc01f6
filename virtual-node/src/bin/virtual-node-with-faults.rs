//! The `virtual-node` binary with fault points, for tests. `virtual-node-with-faults list-faults` names the points.

use std::process::ExitCode;

use tensile_virtual_node::{command, fault};

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("list-faults") {
        for point in fault::POINTS {
            println!("{}", point.name);
        }
        return ExitCode::SUCCESS;
    }
    fault::install();
    command().await
}
