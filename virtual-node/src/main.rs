//! The `virtual-node` binary.

use std::process::ExitCode;

use clap::Parser;
use tensile_virtual_node::{Args, failure, run};

#[tokio::main]
async fn main() -> ExitCode {
    tensile_chassis::tls::install_crypto_provider();
    let args = Args::parse();
    if let Err(error) = args.init_log() {
        eprintln!("virtual-node: {error}");
        return ExitCode::FAILURE;
    }
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", failure::in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}
