//! An upper and two lower clusters to play with.

use clap::{Parser, Subcommand};
use tensile_e2e::playground::{UpArgs, down, up};

/// Brings up an upper and two lower clusters on this machine, with a Deployment that runs across them
#[derive(Debug, Parser)]
#[command(name = "playground", max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Brings everything up, shows it, and removes it at Ctrl-C
    Up(UpArgs),
    /// Removes a playground that another terminal brought up, or what one left that died
    Down,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tensile_e2e::install_crypto();
    match Args::parse().what {
        What::Up(args) => Box::pin(up(&args)).await,
        What::Down => down().await,
    }
}
