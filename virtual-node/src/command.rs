//! The command: arguments, log, and the exit code.

use std::process::ExitCode;

use clap::Parser;

use crate::{Args, failure, run};

/// Runs the virtual-node as the command line says. What `main` does, of every binary that is one.
pub async fn command() -> ExitCode {
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
