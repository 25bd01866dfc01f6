//! Measures tensile; see docs/performance.md.

use clap::{Parser, Subcommand};
use tensile_e2e::bench::{
    fit::{FitArgs, fit},
    offload::{OffloadArgs, offload},
    rest::{RestArgs, rest},
    takeover::{TakeoverArgs, takeover},
};

/// Measures tensile side by side with doing the same without it.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A burst of pods through a virtual node, and straight in the lower cluster
    Offload(OffloadArgs),
    /// One pod at a time on clusters at rest
    Rest(RestArgs),
    /// The fit engine alone, without any cluster
    Fit(FitArgs),
    /// The leader of two replicas dies
    Takeover(TakeoverArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tensile_e2e::install_crypto();
    let args = Args::parse();
    let work = async {
        match args.what {
            What::Offload(args) => Box::pin(offload(&args)).await,
            What::Rest(args) => Box::pin(rest(&args)).await,
            What::Fit(args) => fit(&args),
            What::Takeover(args) => Box::pin(takeover(&args)).await,
        }
    };
    tokio::select! {
        done = work => done,
        // What was started is stopped when it is dropped.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    }
}
